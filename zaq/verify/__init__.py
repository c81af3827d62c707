"""Whether a file is the student: against the checkpoint, layer by layer, and against integer arithmetic."""
