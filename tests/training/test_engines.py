"""Engines of a sweep: real jobs of submitit, in processes of this machine in the place of Slurm; and what is refused."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_gen import sweep
from ppl_gen.core.errors import BadInput
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.training import engines
from ppl_gen.training.engines import Fit, Slurm

Call = Callable[..., tuple[int, str, str]]

QUICK = ["vae", "--data", "digits", "--train-size", "60", "--num-samples", "30", "--hidden-dims", "8"]
SCANCEL = '#!/bin/sh\necho "$@" > cancelled\nexec kill -TERM "$@"\n'
"""What Slurm does: SIGTERM to each process of a job. The number of a job is here that of its process."""


@pytest.fixture
def slurm(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    pytest.importorskip("submitit")
    (elsewhere / "bin").mkdir()
    for name, script in (("scancel", SCANCEL), ("sbatch", "#!/bin/sh\n")):
        (elsewhere / "bin" / name).write_text(script)
        (elsewhere / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{elsewhere / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(engines, "_CLUSTER", "local")
    monkeypatch.setattr(Slurm, "pause", 0.1)
    engines.check_engine("slurm")
    return Slurm(Path("out"), {"timeout_min": 5})


def fit(name: str, *options: str) -> Fit:
    path = Path("out") / name
    return Fit(path, [*QUICK, *options, "--out", str(path)], ["--resume", str(path)])


def test_jobs(slurm: Slurm) -> None:
    """One that succeeds, one that is refused, one that writes its checkpoint when it is cancelled."""
    fits = [fit("good", "--dry-run"), fit("bad", "--epochs", "0"), fit("long", "--epochs", "1000000")]
    jobs = slurm.start(fits)
    assert [job.ended() for job in jobs] == [None] * 3
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (
        None in [job.ended() for job in jobs[:2]] or len(RunDirectory(fits[2].path, {}).metrics()) < 3
    ):
        time.sleep(0.1)
    assert [job.ended() for job in jobs] == ["", "error: --epochs 0: must be at least 1", None]
    assert "not started" in fits[0].log.read_text(encoding="utf-8")
    slurm.interrupt(jobs[2:])
    while time.monotonic() < deadline and jobs[2].ended() is None:
        time.sleep(0.1)
    reason, run = jobs[2].ended(), RunDirectory.open(fits[2].path)
    assert reason is not None and reason.startswith("interrupted: ") and "--resume out/long" in reason
    step = run.step()
    assert step is not None and step > 0 and fits[2].words == ["--resume", "out/long"]
    assert Path("cancelled").read_text() == f"{jobs[2].job.job_id}\n"
    assert slurm.threads == 1 and run.config["num_threads"] == 1 and run.config["command"][0].endswith("fit.py")


def test_a_job_that_is_killed(slurm: Slurm) -> None:
    (job,) = slurm.start([fit("left-behind", "--dry-run")])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not job.fit.log.exists():
        time.sleep(0.05)
    job.job._results_timeout_s = 0  # else it waits for a file system of several machines
    job.job._process.kill()  # the process that watches over the job, which goes on for a second
    while time.monotonic() < deadline and job.ended() is None:
        time.sleep(0.05)
    assert str(job.ended()).startswith(f"job {job.job.job_id} ended as INTERRUPTED; its last line: ")


def test_what_is_refused(elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, before anything is made."""
    wanted = ("vae", "--out", "out", "--engine")
    with monkeypatch.context() as patch:
        patch.setattr(engines, "find_spec", lambda name: None)
        for name, library in (("slurm", "submitit"), ("ray", "ray")):
            told = f"error: --engine {name}: needs {library}; install it: pip install 'ppl_gen[{name}]'\n"
            assert call(sweep.command, *wanted, name) == (2, "", told)
    monkeypatch.setattr(engines, "find_spec", lambda name: object())
    monkeypatch.setenv("PATH", "")
    assert "there is no sbatch on this machine" in call(sweep.command, *wanted, "slurm")[2]
    assert "--engine" in call(sweep.command, *wanted, "dask")[2]
    assert "take none" in call(sweep.command, *wanted, "local", "--resources", "cpus_per_task=2")[2]
    assert "--resources x: must have the form NAME=VALUE" in call(sweep.command, *wanted, "ray", "--resources", "x")[2]
    assert not list(elsewhere.iterdir())


def test_resources_that_submitit_does_not_know(slurm: Slurm) -> None:
    with pytest.raises(BadInput, match=r"resources: .*colour"):
        Slurm(Path("out"), {"colour": "blue"})
