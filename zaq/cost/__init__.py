"""What a file costs: bytes, operations, energy, latency."""
