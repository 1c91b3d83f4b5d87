"""Interleaved timing. Machines are noisy: compare within one process, in turns, by medians."""

import statistics
import time
from collections.abc import Callable


def medians(candidates: dict[str, Callable[[], object]], *, rounds: int, warmup: int = 5) -> dict[str, float]:
    """Median seconds of a call of each candidate, called in turns."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, seconds: dict[str, float], reference: str) -> None:
    """A table of milliseconds and ratios to the reference."""
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:<44}{value * 1e3:10.2f} ms  {value / seconds[reference]:6.2f} x")
