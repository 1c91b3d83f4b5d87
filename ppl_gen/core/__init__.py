"""What everything else rests on: contracts, without an import of the rest of the package."""
