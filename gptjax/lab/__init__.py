"""Experiments on a model as functions over (params, batch): gradients of single examples, noise
and curvature, privacy; what a model computes inside."""
