"""Shares of several processes, and which of them speaks."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrun import MIXTURE, run_two

from ppl_gen.core import parallel
from ppl_gen.core.errors import BadInput
from ppl_gen.experiment.config import Config

FAILING = """
import os

from ppl_gen.guides.normal import Normal


class Failing(Normal):
    def guide(self, x):
        if self.training and os.environ.get("RANK") == "1":
            raise RuntimeError("this process fails")
        super().guide(x)
"""


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BadInput, match="3 processes on a machine with 2 GPUs"):
        parallel.join()
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_what_is_refused_is_refused_in_one_line(elsewhere: Path) -> None:
    Path("there").mkdir()
    for arguments, message in (
        (("ppl_gen.fit", "mixture", *MIXTURE, "--out", "there"), "--out there: exists already"),
        (("ppl_gen.fit", "mixture", "--data", "nosuch"), "nosuch"),
        (("ppl_gen.compare", "there"), "only fit and evaluate can run in several processes"),
    ):
        done = run_two(*arguments)
        assert done.returncode != 0
        assert done.stderr.count("error: ") == 1 and message in done.stderr, done.stderr


@pytest.mark.slow
def test_a_rank_that_fails_ends_all(elsewhere: Path) -> None:
    Path("failing.py").write_text(FAILING)
    done = run_two("ppl_gen.fit", "vae", "--guide", "failing.py:Failing", *MIXTURE[:-2], "--out", "failed")
    assert done.returncode != 0
    assert "this process fails" in done.stderr
    assert not (Path("failed") / "evaluation.json").exists()


REFUSED = """
from ppl_gen.core import cli
from ppl_gen.core.errors import BadInput


def refused(arguments):
    print("begun", flush=True)
    raise BadInput("no")


cli.main(refused, distributed=True)
"""


def test_the_first_says_what_is_wrong() -> None:
    """The others, which find the same, say nothing, and wait until they are ended."""

    def started(rank: int) -> subprocess.Popen[str]:
        environment = os.environ | {"WORLD_SIZE": "2", "RANK": str(rank)}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", REFUSED], env=environment, **pipes)

    with started(0) as first:
        assert first.stdout is not None and first.stdout.readline() == "begun\n"
        assert first.wait(4) == 2 and first.communicate()[1] == "error: no\n"
    with started(1) as second:
        assert second.stdout is not None and second.stdout.readline() == "begun\n"
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(0.5)
        second.kill()
        assert second.communicate()[1] == ""


def test_one_process_is_by_itself() -> None:
    rows = torch.arange(5)
    assert parallel.shard(rows).tolist() == rows.tolist()
    assert parallel.all_gather({"a": rows})["a"] is rows
    assert (parallel.world_size(), parallel.rank(), parallel.broadcast_object("x")) == (1, 0, "x")


def test_parts_are_joined_in_order() -> None:
    parts = [{"x": torch.arange(2), "of": Config(), "n": 3}, None, {"x": torch.arange(2, 5), "of": Config(), "n": 3}]
    joined = parallel.joined(parts)
    assert joined["x"].tolist() == [0, 1, 2, 3, 4]
    assert joined["of"] == Config() and joined["n"] == 3
    assert parallel.joined([None, None]) is None


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shares(processes: int) -> None:
    """Of several processes: each has none, or at least two; without a need for two, as torch divides them."""
    for count in range(14):
        rows = torch.arange(count)
        for least in (1, 2):
            parts = parallel.shards(rows, processes, least)
            assert len(parts) == processes and torch.equal(torch.cat(parts), rows)
            assert all(len(part) == 0 or len(part) >= min(least, count) for part in parts)
            if least == 1 or count >= 2 * processes:
                assert [len(p) for p in parts] == [len(p) for p in rows.tensor_split(processes)]
