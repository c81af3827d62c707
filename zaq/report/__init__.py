"""What happened, as facts and as a page; what is in a model."""
