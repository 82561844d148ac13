"""Attention: masks, implementations and layers."""
