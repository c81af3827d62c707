"""Data out of a teacher: generators, and the losses that tell them what to draw."""
