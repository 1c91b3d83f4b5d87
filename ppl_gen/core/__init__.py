"""What every floor of the package uses, and what uses none of them, nor torch at import."""
