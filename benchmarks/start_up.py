"""Processor time of commands that have no work to do, beside `import torch`: `python -m benchmarks.start_up`.

Help, the version, and words that are mistyped. The processes take turns; medians. Modules are compiled beforehand, as
they are from the second time on that a command is typed.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial

from benchmarks.timing import Comparison, medians, show

REFERENCE = 'python -c "import torch"'
COMMANDS = {
    REFERENCE: ["-c", "import torch"],
    'python -c "import torch, pyro"': ["-c", "import torch, pyro"],
    **{
        f"python -m ppl_gen{words}": [*f"-m ppl_gen{words}".split()]
        for words in (
            "",
            " --version",
            " fitt",
            ".compare --help",
            ".compare nowhere",
            ".sample --help",
            ".sample nowhere",
            ".evaluate --help",
            ".evaluate nowhere",
            ".sweep --help",
            ".fit --help",
            ".fit vae --help",
            ".fit vae --epoch 3",
            ".fit vea",
        )
    },
}
"""Arguments of Python by the line that a user types."""


def start(arguments: list[str], folder: str) -> None:
    """Run Python with one thread, in a folder without runs, and without its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 2) or "Traceback" in done.stderr:
        raise RuntimeError(f"{arguments}: {done.stderr}")


def processor_time() -> float:
    """Seconds of processor time of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(rounds: int) -> Comparison:
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[], object]] = {
            name: partial(start, arguments, folder) for name, arguments in COMMANDS.items()
        }
        seconds = medians(calls, rounds=rounds, warmup=1, in_turn=1, clock=processor_time)
    return show("start-up, processor time", seconds, REFERENCE)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_up", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="processes of each line (default 7)")
    measure(parser.parse_args().rounds)


if __name__ == "__main__":
    main()
