"""Speed, side by side with named references, interleaved in one process: `python -m benchmarks`."""
