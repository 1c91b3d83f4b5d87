"""A run: its configuration, its directory, and the model, guide and data that these describe."""
