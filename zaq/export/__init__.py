"""From the student to a file that a device runs, and the check that the file is the student."""
