"""How a run tells where it is."""
