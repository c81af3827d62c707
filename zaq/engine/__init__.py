"""What runs stages: the task, the state, the journal, the runner, progress."""
