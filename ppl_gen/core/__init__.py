"""What every floor uses: contracts, options, errors."""
