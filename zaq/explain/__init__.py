"""What single units of a network have learned to see, as logical forms, and what quantization changed of it."""
