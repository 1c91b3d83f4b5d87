"""Data sets: where images come from, splits, binarization."""
