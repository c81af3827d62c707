"""Many quantizations, measured alike: a plan, its cells, their table and its page."""
