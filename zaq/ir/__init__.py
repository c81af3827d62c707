"""A model as one graph: captured, in one spelling, with the words to speak of its operations."""
