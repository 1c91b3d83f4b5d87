"""A disk on which one of the files does not fit, whichever it is."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_gen import fit
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.experiment.run_directory import RunDirectory

Call = Callable[..., tuple[int, str, str]]

# Runs a command again and again, each time with another largest size of a file; a line of JSON has what it did.
LIMITED = """
import contextlib, io, json, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from ppl_gen import evaluate
from ppl_gen.core import cli
for limit in map(int, sys.argv[1:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        sys.argv = ["evaluate", "run", "--num-samples", "20"]
        try:
            cli.main(evaluate.command)
        except SystemExit as end:
            status = end.code
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps({"limit": limit, "status": status, "err": err.getvalue()}))
"""


@pytest.mark.attack
def test_an_evaluation_that_does_not_fit(elsewhere: Path, fitted: Path) -> None:
    """One line with the reason and status 2; the evaluation that was there is whole, and no half file is left."""
    shutil.copytree(fitted, "run")
    before = RunDirectory.open("run").read_evaluation()
    sizes = [int(0.9 * (fitted / name).stat().st_size) for name in ("evaluation.nc", "report.html")]
    done = subprocess.run([sys.executable, "-c", LIMITED, *map(str, sizes)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"limit"')]
    assert [result["limit"] for result in results] == sizes
    for result in results:
        assert result["status"] == 2 and "Traceback" not in result["err"]
        assert result["err"].endswith("File too large; files that were saved before are intact\n")
    after = RunDirectory.open("run").read_evaluation()
    assert after != before and Evaluation.read(RunDirectory.open("run")) is not None  # the page alone did not fit
    assert sorted(path.name for path in Path("run").rglob(".*")) == [".lock"]


@pytest.mark.attack
def test_a_disk_that_fills_up_at_any_moment(elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit on a disk that is full from the first write on, from the fifth, …; the run is continued to its end."""
    fsync, options = os.fsync, ("--data", "digits", "--train-size", "60", "--epochs", "1", "--num-samples", "5")
    arguments = ("vae", *options, "--hidden-dims", "4", "--latent-dim", "1", "--out", "run")
    for allowed in itertools.count(0, 4):
        count = 0

        def full(descriptor: int, allowed: int = allowed) -> None:
            nonlocal count
            count += 1
            if count > allowed:
                raise OSError(28, "No space left on device")
            fsync(descriptor)

        shutil.rmtree("run", ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            status, _, err = call(fit.command, *arguments)
        if status == 0:
            break
        last = err.splitlines()[-1]
        assert status == 2 and last.startswith("error: ") and "No space left on device" in last, err
        assert "Traceback" not in err and sorted(path.name for path in Path().rglob(".*")) in ([], [".lock"])
        if Path("run").exists():
            assert call(fit.command, "--resume", "run")[0] == 0
            assert [line["epoch"] for line in RunDirectory.open("run").metrics()] == [0, 1]
    assert allowed > 15
