"""Engines of a sweep: jobs of submitit, in processes of this machine in the place of Slurm; and what is refused."""

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppl_gen import sweep
from ppl_gen.core import cli
from ppl_gen.core.errors import BadInput
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.training import engines
from ppl_gen.training.engines import Fit, Slurm
from ppl_gen.training.sweeping import SweepOptions, plan

Call = Callable[..., tuple[int, str, str]]

QUICK = ("--data", "digits", "--train-size", "150", "--epochs", "1", "--num-samples", "20", "--hidden-dims", "8")
QUICK += ("--latent-dim", "2")  # the run "vae" of `three_fitted`
SCANCEL = """#!{python} -S
import os, pathlib, sys
which, *jobs = sys.argv[1:]
print(which, file=open("cancelled", "a"))
for job in jobs if which == "--signal=INT" else ():
    for task in pathlib.Path(f"/proc/{{job}}/task/{{job}}/children").read_text().split():
        os.kill(int(task), 2)
"""
"""What Slurm does: the signal reaches the processes of a job. The number of a job is here that of their parent."""


@pytest.fixture
def local(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are processes of this machine."""
    pytest.importorskip("submitit")
    (elsewhere / "bin").mkdir()
    for name, script in (("scancel", SCANCEL.format(python=sys.executable)), ("sbatch", "#!/bin/sh\n")):
        (elsewhere / "bin" / name).write_text(script)
        (elsewhere / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{elsewhere / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(engines, "_CLUSTER", "local")
    monkeypatch.setattr(Slurm, "pause", 0.1)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _evaluation(run: Path) -> Any:
    return json.loads((run / "evaluation.json").read_text(encoding="utf-8")) | {"seconds": 0}


def test_a_sweep_of_jobs(local: None, call: Call, three_fitted: Path) -> None:
    """Its numbers are those of a fit in this process, bit for bit."""
    arguments = ("vae", "--out", "out", "--engine", "slurm", "--resources", "timeout_min=5", "--", *QUICK)
    status, out, err = call(sweep.command, *arguments)
    assert status == 0, err
    assert out == "all 1 runs are finished; compare them: python -m ppl_gen.compare out/*/\n"
    first, second, third = err.splitlines()
    assert first == "1 runs: 0 already finished, 0 to continue, 1 to start; 1 at a time, 1 thread each"
    assert second == "submit    1 run, from vae-normal-elbo-0"
    assert third.startswith("done      vae-normal-elbo-0 ") and third.endswith(" after its submission; 0 left")
    assert "log p(x)" in Path("out/vae-normal-elbo-0.log").read_text(encoding="utf-8")
    assert _evaluation(Path("out/vae-normal-elbo-0")) == _evaluation(three_fitted / "vae")
    made = RunDirectory.open(Path("out/vae-normal-elbo-0")).config
    assert made["num_threads"] == 1 and made["command"][0].endswith("fit.py")


def test_signals(local: None) -> None:
    """A job that Slurm preempts writes a checkpoint and goes on; one that the sweep interrupts writes it and ends; one
    that is killed is told of in a line."""
    engine = Slurm(Path("out"), {"timeout_min": 5})
    paths = [Path("out/one"), Path("out/two")]
    options = ("vae", *QUICK, "--epochs", "1000000", "--out")
    one, two = engine.start([Fit(path, [*options, str(path)], ["--resume", str(path)]) for path in paths])

    def tasks(job: Any) -> list[int]:
        number = job.job.job_id
        return [int(task) for task in Path(f"/proc/{number}/task/{number}/children").read_text().split()]

    def step(path: Path) -> int:
        lines = RunDirectory(path, {}).metrics() if path.exists() else []
        return int(lines[-1]["step"]) if lines else 0

    _until(lambda: two.fit.log.exists())
    os.kill(tasks(two)[0], signal.SIGKILL)
    _until(lambda: two.ended() is not None)
    told = (
        f"job {two.job.job_id} has ended as FINISHED; see {two.job.paths.stderr}; the last line of its log: no output"
    )
    assert two.ended() == told

    _until(lambda: step(one.fit.path) > 1)
    (before,) = tasks(one)
    for number in (signal.SIGTERM, signal.SIGUSR2):  # of preemption
        os.kill(before, number)
    _until(lambda: tasks(one) not in ([], [before]))
    stopped = RunDirectory.open(one.fit.path).step()
    assert stopped and "interrupted: continue with" in one.fit.log.read_text(encoding="utf-8")
    assert one.fit.words == ["--resume", "out/one"] and one.ended() is None
    _until(lambda: step(one.fit.path) > stopped)
    engine.interrupt([one])
    _until(lambda: one.ended() is not None)
    reason = one.ended()
    assert reason is not None and reason.startswith("interrupted: ") and "--resume out/one" in reason
    assert Path("cancelled").read_text() == "--state=PENDING\n--signal=INT\n"


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


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"colour": "blue"}, "Parameter 'colour' "),
        ({"cpus_per_task": "two"}, 'Parameter "cpus_per_task" '),
        ({"slurm_colour": "blue"}, "Unknown argument 'colour' "),
    ],
)
def test_resources_that_submitit_does_not_know(local: None, resources: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=f"^resources: {words}[^\n]*$"):
        Slurm(Path("out"), resources)


def test_jobs_that_are_refused(local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Slurm(Path("out"), {})

    def refuse(*_: object) -> None:
        raise RuntimeError("sbatch: error: too many jobs\nand more")

    monkeypatch.setattr(type(engine._executor), "_internal_process_submissions", refuse)
    with pytest.raises(
        BadInput, match=r"engine slurm: the jobs were refused: sbatch: error: too many jobs; jobs limits"
    ):
        engine.start([Fit(Path("out/one"), [], [])])


def test_tasks_of_ray(elsewhere: Path) -> None:
    """One that succeeds, one that is refused, one that writes its checkpoint when it is interrupted."""
    pytest.importorskip("ray")
    options = {"good": "--dry-run", "bad": "--train-size=9999", "long": "--epochs=1000000"}
    paths = {name: Path("out") / name for name in options}
    Path("out").mkdir()
    fits = [
        Fit(path, ["vae", *QUICK, options[name], "--out", str(path)], ["--resume", str(path)])
        for name, path in paths.items()
    ]
    engine = engines.Ray({})
    good, bad, long = engine.start(fits)
    _until(lambda: good.ended() is not None and bad.ended() is not None)
    assert good.ended() == "" and str(bad.ended()).startswith("error: --train-size 9999: ")
    _until(lambda: (paths["long"] / "metrics.jsonl").exists())
    assert long.ended() is None
    engine.interrupt([long])
    _until(lambda: long.ended() is not None)
    assert str(long.ended()).startswith("interrupted: continue with: ") and RunDirectory.open(paths["long"]).step()
    with pytest.raises(BadInput, match="resources: "):
        engines.Ray({"colour": "blue"})


def test_the_page_has_a_sweep_of_a_thousand(elsewhere: Path) -> None:
    """The options of its commands are read, and the first is planned."""
    text = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    found = []
    for command in re.findall(r"-m ppl_gen\.sweep (.*?)\n```", text, re.DOTALL):
        words = shlex.split(command.replace("\\\n", " ").replace("$(seq 0 99)", " ".join(map(str, range(100)))))
        words = words[: words.index(">")] if ">" in words else words
        cut = words.index("--")
        found.append((cli.parse(SweepOptions, words[:cut], "", ""), words[cut + 1 :]))
    assert [options.engine for options, _ in found] == ["slurm", "ray"]
    assert len(plan(*found[0])) == 1000
