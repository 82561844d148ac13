"""Evaluation: records of a task become requests, a model's responses become figures with
intervals."""
