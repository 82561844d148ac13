"""Meshes, logical axes, sharding constraints and collectives."""
