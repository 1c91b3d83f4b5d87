"""One writer at a time for each run, and any number of readers."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import numpy as np
import pytest

from ppl_gen import calibrate, compare, evaluate, fill, fit, quality, responsibilities, sample, splice, sweep
from ppl_gen.core.errors import BadInput
from ppl_gen.data.splits import Data
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.evaluation.reading import read
from ppl_gen.experiment import run_directory
from ppl_gen.experiment.locks import only_writer
from ppl_gen.experiment.run_directory import RunDirectory, to_json, to_netcdf
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]
HOLD = """
import sys
from pathlib import Path
from ppl_gen.experiment.locks import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
FEW = ("--num-images", "10", "--num-samples", "5")
WRITERS: dict[str, tuple[Callable[[list[str]], None], tuple[str, ...]]] = {
    "fit --resume": (fit.command, ("--resume", "run")),
    "fit --resume --epochs": (fit.command, ("--resume", "run", "--epochs", "3")),
    "evaluate": (evaluate.command, ("run",)),
    "evaluate --gaps": (evaluate.command, ("run", "--gaps", *FEW)),
    "fill": (fill.command, ("run", *FEW)),
    "splice": (splice.command, ("run", *FEW)),
    "sample": (sample.command, ("run",)),
    "quality": (quality.command, ("run",)),
    "calibrate": (calibrate.command, ("run",)),
    "responsibilities": (responsibilities.command, ("run",)),
}


@contextmanager
def held(run: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that writes to a run."""
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        try:
            yield other
        finally:
            other.kill()


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_second_writer_is_told_at_once_and_readers_are_not_disturbed(
    elsewhere: Path, fitted: Path, call: Call, data: Data
) -> None:
    shutil.copytree(fitted, "run")
    with held(Path("run")) as other:
        before = contents(Path("run"))
        for name, (command, arguments) in WRITERS.items():
            status, out, err = call(command, *arguments)
            assert (status, out, err.count("\n")) == (2, "", 1), name
            assert err.startswith(f"error: run: process {other.pid} on ") and "since 20" in err, name
            assert sys.executable in err and err.endswith("writes to it; wait for it to end\n"), name
        run = Run.open("run")
        with pytest.raises(BadInput, match=f"process {other.pid} "):
            run.evaluate(num_samples=5, quiet=True)
        assert contents(Path("run")) == before

        assert run.evaluation is not None and len(run.metrics) == 2
        assert len(run.log_px(data.test.images[:2], num_samples=5).log_px) == 2
        assert call(compare.command, "run", "--figure", "f.png")[0] == 0
        assert call(sample.command, "run", "--out", "s.npy", "--num-images", "4")[0] == 0
        assert contents(Path("run")) == before

        # It is killed in the middle of a file.
        other.send_signal(signal.SIGKILL)
        other.wait()
    for left in ("run/.12-ab.tmp", "run/figures/.12-cd.tmp"):
        Path(left).write_text("half")
    assert Path("run/.writer").exists()
    assert call(evaluate.command, "run", "--num-samples", "5")[0] == 0
    assert sorted(path.name for path in Path("run").rglob(".*")) == [".lock"]


def test_a_thread_holds_it_as_often_as_it_likes(tmp_path: Path) -> None:
    """Another thread does not get it before the first is done. The path may lead through a link."""
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "link").symlink_to("run")
    refused = list[str]()

    def other() -> None:
        try:
            with only_writer(run):
                pass
        except BadInput as error:
            refused.append(error.sentence)

    def elsewhere() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with only_writer(run):
        with only_writer(tmp_path / "link"):
            assert json.loads((run / ".writer").read_text())["process"] == os.getpid()
        elsewhere()
    assert len(refused) == 1 and f"process {os.getpid()} on " in refused[0]
    elsewhere()
    assert len(refused) == 1 and not (run / ".writer").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"process": "1"}', b"\xff"])
def test_a_writer_without_a_name(elsewhere: Path, content: bytes) -> None:
    Path("run").mkdir()
    with held(Path("run")):
        Path("run/.writer").write_bytes(content)
        with pytest.raises(BadInput, match=r"^run: another process writes to it"), only_writer(Path("run")):
            pass


def test_a_lock_that_is_a_link(elsewhere: Path) -> None:
    Path("run").mkdir()
    Path("run/.lock").symlink_to("../elsewhere")
    with pytest.raises(BadInput, match=r"^run: cannot be written: \.lock is a link"), only_writer(Path("run")):
        pass
    assert not Path("elsewhere").exists()


def test_a_file_system_without_locks(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as NFS without its lock service: the work is done, with a warning."""

    def acquire(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    Path("run").mkdir()
    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with only_writer(Path("run")):
        assert not list(Path("run").iterdir())
    assert capsys.readouterr().err == (
        "warning: run: is on a file system without locks; start no second command on it\n"
    )


def test_an_evaluation_is_read_whole(elsewhere: Path, fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader between whose two files another process puts a new evaluation has the new one, or the old one."""
    shutil.copytree(fitted, "run")
    before = Evaluation.read(RunDirectory.open("run"))
    assert before is not None and before.images is not None
    images = before.images.assign(elbo=before.images["elbo"] - 1).assign_attrs(seed=3)
    summary = before.summary | {"seed": 3, "elbo": {**before.summary["elbo"], "mean": before.elbo.mean - 1}}
    new = {"evaluation.nc": to_netcdf(images), "evaluation.json": to_json(summary).encode()}
    content_of, replaced = run_directory._content, False

    def replacing(path: Path) -> bytes | None:
        nonlocal replaced
        found = content_of(path)
        if not replaced and path.name == "evaluation.json":
            replaced = True
            for each, content in new.items():
                Path("run", each).write_bytes(content)
        return found

    for reader in (lambda: Evaluation.read(RunDirectory.open("run")), lambda: read(Path("run"))):
        for name in new:
            shutil.copy(fitted / name, "run")
        replaced = False
        with monkeypatch.context() as patch:
            patch.setattr(run_directory, "_content", replacing)
            found = reader()
        assert replaced and found is not None and found.summary["seed"] == 3
        elbo = found.images["elbo"].values if isinstance(found, Evaluation) else found.elbo
        assert np.isclose(elbo.mean(), found.summary["elbo"]["mean"])


FIT = ("--data", "digits", "--train-size", "60", "--epochs", "1", "--num-samples", "5", "--hidden-dims", "4")


def start(*words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.attack
def test_two_resumes_at_once(elsewhere: Path, call: Call) -> None:
    """One goes on, or one after the other; no epoch is there twice, and no checkpoint is lost."""
    assert call(fit.command, "vae", *FIT, "--latent-dim", "1", "--out", "run")[0] == 0
    refused = 0
    for epochs in range(2, 7):
        arguments = ("ppl_gen.fit", "--resume", "run", "--epochs", str(epochs))
        processes = [start(*arguments), start(*arguments)]
        results = [(*process.communicate(), process.returncode) for process in processes]
        for _, err, status in results:
            assert status in (0, 2) and "Traceback" not in err
            if status == 2:
                refused += 1
                assert err.count("\n") == 1 and "writes to it" in err
        assert any(status == 0 for *_, status in results)
        run = RunDirectory.open("run")
        assert [line["epoch"] for line in run.metrics()] == list(range(epochs + 1))
        assert run.load_checkpoint() is not None and Evaluation.read(run) is not None
    assert refused >= 3


@pytest.mark.attack
def test_a_sweep_beside_a_writer(elsewhere: Path, call: Call) -> None:
    """The run that another process continues is left to it."""
    grid = ("vae", "--guides", "normal", "--objectives", "elbo", "--out", "out", "--", *FIT, "--latent-dim", "1")
    assert call(sweep.command, *grid)[0] == 0
    run = Path("out/vae-normal-elbo-0")
    (run / "evaluation.json").unlink()
    with held(run) as other:
        before = contents(run)
        status, _, err = call(sweep.command, *grid)
        assert status == 1 and f"vae-normal-elbo-0: error: {run}: process {other.pid} on " in err
        assert contents(run) == before
    assert call(sweep.command, *grid)[0] == 0
