"""Estimates of log p(x) of a fitted model, and the other uses of the model."""
