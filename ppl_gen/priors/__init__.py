"""Distributions of z to put in the place of a model's own, one family per file."""
