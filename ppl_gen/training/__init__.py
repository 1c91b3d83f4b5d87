"""Training: the loop, the optimizer, what is measured on the way, and the checks before the first step."""
