"""Distributions p(z) that can replace a model's own prior. Each file has one family."""
