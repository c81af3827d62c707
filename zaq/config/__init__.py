"""Frozen choices: bits and placements, cards, and what each runtime takes."""
