"""Interleaved timing. Machines are noisy: compare within one process, in turns, by medians."""

import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

_TURN = 5


def machine() -> str:
    """The processor, its widest vectors, the number of its cores, and the GPU if there is one."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.*)$", file.read_text() if file.exists() else "", re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([name, torch.backends.cpu.get_cpu_capability(), f"{os.cpu_count()} cores", *gpu])


def medians(
    candidates: dict[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 5,
    in_turn: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    middle: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Median seconds of a call of each candidate.

    Each has some calls in turn, the first of which is not counted: it finds the caches full of the others' numbers, as
    no call in a loop of its own does. A call on a GPU ends when the GPU is done.

    :param in_turn: calls that count in a turn; by default 5, or 1 of few rounds, where every call counts.
    :param clock: tells the time in seconds.
    :param middle: the median, or `min` on a machine with other work.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    if in_turn is None:
        in_turn = _TURN if rounds >= 10 * _TURN else 1
    for turn in range(-(-warmup // in_turn) + -(-rounds // in_turn)):
        for name, call in candidates.items():
            for number in range(in_turn + (in_turn > 1)):
                start = clock()
                call()
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()
                if turn * in_turn >= warmup and (number > 0 or in_turn == 1):
                    times[name].append(clock() - start)
    return {name: middle(values) for name, values in times.items()}


@dataclass(frozen=True)
class Comparison:
    """Median seconds of several candidates, one of which the others are compared with."""

    title: str
    seconds: dict[str, float]
    reference: str
    more: dict[str, list[float]] = field(default_factory=dict)
    """Ratios of further runs, by candidate."""

    def ratios(self) -> dict[str, float]:
        return {name: value / self.seconds[self.reference] for name, value in self.seconds.items()}


def show(title: str, seconds: dict[str, float], reference: str) -> Comparison:
    """Print a table of milliseconds and ratios to the reference."""
    comparison = Comparison(title, seconds, reference)
    print(f"\n{title}")
    for name, ratio in comparison.ratios().items():
        print(f"  {name:<48}{seconds[name] * 1e3:10.2f} ms  {ratio:7.2f} x", flush=True)
    return comparison
