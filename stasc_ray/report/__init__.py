"""A run folder as a page for people."""
