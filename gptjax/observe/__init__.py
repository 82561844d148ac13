"""Observers of a run: what is printed, logged, measured and reported. None changes a number."""
