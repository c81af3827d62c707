"""Where torch computes: devices, processes, random numbers."""
