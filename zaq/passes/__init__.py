"""Rewrites that keep what the graph computes: each a file with its algebra, and a reason for every skip."""
