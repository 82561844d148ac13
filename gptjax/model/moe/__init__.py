"""Mixtures of experts: routing and dispatch."""
