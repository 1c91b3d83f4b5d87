"""Shared code of the package. It imports no other folder."""
