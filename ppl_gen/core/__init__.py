"""Contracts, command lines and other small parts that every folder may use. It imports none of them, nor torch."""
