"""Figures of evaluation: of texts, of probabilities, of classes, of whole texts, over tasks."""
