"""Data sets: sources of images, splits, binarization."""
