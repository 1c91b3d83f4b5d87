"""Contracts, command lines and other small parts that every folder may use. Nothing here needs torch at import."""
