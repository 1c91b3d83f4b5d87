"""Generative models p(x, z), one file each."""
