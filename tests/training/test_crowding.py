"""The warning of a busy machine, with given times; and that Linux counts what it needs."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from fits import small_config

from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.config import Given
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.training.crowding import Crowding, scheduled
from ppl_gen.training.loop import train


def _warnings(seconds: Iterable[float], shares: Iterable[float], threads: int = 2) -> list[str]:
    """The warnings after steps of so many seconds each, 2 or more, of which threads run for a share."""
    looks, ran, waited = [(7.0, 3.0)], 7.0, 3.0
    for share in shares:
        ran, waited = ran + share, waited + 1 - share
        looks.append((ran, waited))
    crowding = Crowding(threads, iter(looks).__next__)
    return [warning for each in seconds if (warning := crowding.after_step(each))]


def test_steps_that_wait_for_cores_are_told_of_once() -> None:
    (warning,) = _warnings([2, 2, 3, 40, 60, 60], [1, 1, 0.9, 0.25, 0.25, 0.25])
    assert warning.startswith(
        "warning: other programs use the cores: steps take 20 times what they did, and threads wait"
    )
    assert "for 75% of the time; OMP_NUM_THREADS=1 " in warning


def test_a_machine_that_is_busy_from_the_start() -> None:
    (warning,) = _warnings([40, 40, 400], [0.3, 0.3, 0.3])
    assert warning.startswith("warning: other programs use the cores: threads wait for a core for 70% of the time; OMP")


@pytest.mark.parametrize(
    ("seconds", "shares", "threads"),
    [
        ([2, 2, 19, 19], [1, 1, 0.3, 0.3], 2),  # less than ten times
        ([2, 2, 40, 40], [1, 1, 0.97, 0.7], 2),  # slow for another reason, such as a disk
        ([40, 40, 40], [0.7, 0.3, 0.3], 2),  # no step was faster
        ([2, 2, 40, 40], [1, 1, 0.3, 0.3], 1),  # one thread waits for no other
    ],
)
def test_nothing_else_is_told_of(seconds: list[float], shares: list[float], threads: int) -> None:
    assert _warnings(seconds, shares, threads) == []


def test_short_steps_are_taken_together() -> None:
    looks = iter([(0.0, 0.0), (2.0, 0.0), (3.0, 2.0)])
    crowding = Crowding(2, looks.__next__)
    told = [crowding.after_step(seconds) for seconds in [0.125] * 16 + [0.5, 2.0]]
    assert told[:-1] == [None] * 17 and "10 times" in str(told[-1])


def test_where_nothing_is_counted() -> None:
    crowding = Crowding(2, lambda: None)
    assert [crowding.after_step(seconds) for seconds in (2, 2, 90)] == [None] * 3


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux counts")
def test_a_thread_that_waits_for_a_core_is_counted() -> None:
    """Two processes that want the same core: they run for the whole time, and each waits while the other runs."""
    code = (
        "import os, time; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from ppl_gen.training.crowding import scheduled; os.fork(), os.fork();"
        "before = scheduled(); end = time.perf_counter() + 0.6\n"
        "while time.perf_counter() < end: pass\n"
        # In one piece: all four write to the same pipe, and PYTHONUNBUFFERED would write word by word.
        "after = scheduled(); os.write(1, f'{after[0] - before[0]} {after[1] - before[1]}\\n'.encode())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    times = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    assert len(times) == 4  # 2 x 2 processes after two forks
    assert sum(ran for ran, _ in times) < 1.2 and all(waited > 0.15 for _, waited in times)
    assert scheduled() is not None


def test_training_shows_the_warning(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It asks after every step."""
    asked: list[float] = []

    def after_step(crowding: Crowding, seconds: float) -> str | None:
        asked.append(seconds)
        return "warning: crowded" if len(asked) == 2 else None

    monkeypatch.setattr(Crowding, "after_step", after_step)
    config = small_config()
    directory = RunDirectory.create(tmp_path / "run", "run", {})
    train(Fitted(config, *assemble(config, data), data, Given(), directory))
    assert len(asked) == directory.metrics()[-1]["step"] and all(0 < seconds < 60 for seconds in asked)
    assert capsys.readouterr().err.count("warning: crowded\n") == 1
