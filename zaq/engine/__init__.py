"""What runs stages: progress, the journal, the runner."""
