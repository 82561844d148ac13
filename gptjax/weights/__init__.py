"""Weights as values: what is stored, and how an activation is multiplied by it."""
