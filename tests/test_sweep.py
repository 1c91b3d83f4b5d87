"""`sweep`: a real one, tiny; and what it does about failures and interrupts, with a process in the place of `fit`."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppl_gen import sweep
from ppl_gen.comparison import Comparison
from ppl_gen.core import cli
from ppl_gen.training import sweeping

Call = Callable[..., tuple[int, str, str]]

REST = ("--", "--data", "digits", "--train-size", "60", "--epochs", "1", "--num-samples", "30", "--hidden-dims", "8")

SEEDS = ("vae", "--guides", "normal", "--objectives", "elbo", "--seeds", "0", "1", "2", "--out", "out")

GUIDE = """
import pyro
import pyro.distributions as dist
from torch import nn

import ppl_gen


class Mine(nn.Module):
    def __init__(self, data_dim, latent_dim):
        super().__init__()
        self.loc = nn.Linear(data_dim, latent_dim)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), 0.5).to_event(1))


class Bound:
    def __init__(self, *, num_particles: int = 3, groups: int = 1):
        self.num_particles, self.groups = num_particles, groups

    def surrogate(self, terms):
        return terms.log_weight.unflatten(0, (self.groups, -1)).logsumexp(1).mean(0)


class Share:
    def __init__(self, *, share: float = 0.5):
        self.share = share

    def estimate(self, model, guide, x, num_samples):
        return ppl_gen.log_weights(model, guide, x, num_samples=round(self.share * num_samples))
"""


# In the place of the interpreter: says what it is given, fails for seed 1, and makes the directory of the run.
FAKE = """#!{python} -S
import os, signal, sys, time
arguments = sys.argv[3:]
print("fit", *arguments, "threads", os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"], flush=True)
out = arguments[arguments.index("--out") + 1]
if {wait}:
    def stop(*_):
        open(out + ".interrupted", "a").write("once ")
        sys.exit(1)
    signal.signal(signal.SIGTERM, stop)
    open(out + ".started", "w").close()
    time.sleep(60)
if out.endswith("-1"):
    sys.exit("error: on purpose")
if out.endswith("-2"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def fake(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Puts a process that does nothing in the place of `fit`; one that waits for an interrupt, if asked."""

    def use(wait: bool) -> None:
        script = elsewhere / "fake"
        script.write_text(FAKE.format(python=sys.executable, wait=wait))
        script.chmod(0o755)
        monkeypatch.setattr(sweeping.sys, "executable", str(script))

    return use


def test_a_sweep(elsewhere: Path, call: Call) -> None:
    """Two guides, with an objective and an estimator of the user's own and their options; then nothing; then one run
    that lost its evaluation and one of another seed; then none at all."""
    Path("mine.py").write_text(GUIDE)
    mine = "mine.py:Bound:4,groups=2"
    arguments = ("vae", "--guides", "normal", "mine.py:Mine", "--objectives", mine, "--out", "out", "--seeds", "0")
    estimator = ("--estimator", "mine.py:Share", "--estimator.share", "0.4")
    rest = (*REST, "--latent-dim", "1", *estimator)  # no plane to be drawn
    status, out, err = call(sweep.command, *arguments, *rest)
    assert status == 0, err
    names = ["vae-mine-bound-4-2-0", "vae-normal-bound-4-2-0"]
    assert sorted(path.name for path in Path("out").iterdir() if path.is_dir()) == names
    assert out == "all 2 runs are finished; compare them: python -m ppl_gen.compare out/*/\n"
    lines = err.splitlines()
    assert lines[0].startswith("2 runs: 0 already finished, 0 to continue, 2 to start; ")
    assert sorted(line.split()[1] for line in lines if line.startswith("start ")) == names
    assert sorted(line.split()[1] for line in lines if line.startswith("done ")) == names
    assert "; 1 left, about " in err and lines[-1].endswith("; 0 left")
    assert all("log p(x)" in Path(f"out/{name}.log").read_text(encoding="utf-8") for name in names)

    status, out, err = call(sweep.command, *arguments, *rest)
    assert status == 0 and err.startswith("2 runs: 2 already finished") and err.count("\n") == 1

    # A run that was killed before its page, which is written last, is not finished.
    Path("out/vae-normal-bound-4-2-0/report.html").unlink()
    options = cli.parse(sweeping.SweepOptions, list(arguments), "", "")
    todo = sweeping.remaining(sweeping.plan(options, list(rest[1:])))
    assert [run.path.name for run in todo] == ["vae-normal-bound-4-2-0"]

    lost = Path("out/vae-mine-bound-4-2-0/evaluation.json")
    before = json.loads(lost.read_text(encoding="utf-8"))
    lost.unlink()
    status, out, err = call(sweep.command, "vae", "--guides", "mine.py:Mine", *arguments[4:], "1", *rest)
    assert status == 0 and "2 runs: 0 already finished, 1 to continue, 1 to start" in err
    assert sorted(line for line in err.splitlines()[1:] if "done" not in line) == [
        "continue  vae-mine-bound-4-2-0",
        "start     vae-mine-bound-4-2-1",
    ]
    assert {**json.loads(lost.read_text(encoding="utf-8")), "seconds": 0} == {**before, "seconds": 0}
    rows = Comparison(sorted(path for path in Path("out").iterdir() if path.is_dir())).rows
    assert sorted((row.guide, *row.seeds) for row in rows) == [("mine.py:Mine", 0, 1), ("normal", 0)]
    assert {row.objective for row in rows} == {"mine.py:Bound-4"}
    assert all(row.own["share"].at_least and math.isfinite(row.own["share"].mean or math.nan) for row in rows)
    assert rows[1].own_difference["share"].paired and before["log_px_share"]["num_samples"] == 12

    status, out, err = call(sweep.command, *arguments, *REST, "--latent-dim", "3", *estimator)
    assert status == 2 and "out/vae-normal-bound-4-2-0 was made with other options: latent_dim is 1, not 3" in err
    status, out, err = call(sweep.command, *arguments, *rest[:-1], "0.6")
    assert status == 2 and "was made with other options: share is 0.4, not 0.6" in err
    Path("mine.py").write_text(GUIDE.replace("0.5", "0.6"))
    status, out, err = call(sweep.command, *arguments, *rest)
    changed = "out/vae-normal-bound-4-2-0: mine.py:Bound has changed since the run was started"
    assert status == 2 and changed in err
    Path("mine.py").write_text(GUIDE)
    shutil.rmtree("out/vae-mine-bound-4-2-0")
    Path("out/vae-mine-bound-4-2-0").mkdir()
    status, out, err = call(sweep.command, *arguments, *rest)
    assert status == 2 and "out/vae-mine-bound-4-2-0: not a run directory" in err and err.count("\n") == 1


def test_failures_are_listed_and_the_others_go_on(fake: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(False)
    monkeypatch.setattr(sweep, "cores", lambda: 7)
    status, out, err = call(sweep.command, *SEEDS, "--jobs", "2", *REST)
    assert status == 1 and out == ""
    *_, first, second, last = err.splitlines()
    assert first == "vae-normal-elbo-1: error: on purpose"
    assert second.startswith("vae-normal-elbo-2: killed by signal 9; its last line: fit vae ")
    assert last.startswith(
        "error: 2 of 3 runs failed; their logs are out/<name>.log; run the same command to try them again"
    )
    assert "done      vae-normal-elbo-0 in 0 s" in err and "failed    vae-normal-elbo-1 after" in err
    said = Path("out/vae-normal-elbo-0.log").read_text(encoding="utf-8")
    expected = "fit vae --guide normal --objective elbo --seed 0 --out out/vae-normal-elbo-0 " + " ".join(REST[1:])
    assert said == f"{expected} threads 3 3\n"


def test_ctrl_c(fake: Any, call: Call, elsewhere: Path) -> None:
    """Reaches every process once, and starts no more."""
    fake(True)

    def interrupt() -> None:
        deadline = time.monotonic() + 20
        while len(list(elsewhere.glob("out/*.started"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    Path("out").mkdir()
    thread = threading.Thread(target=interrupt)
    thread.start()
    status, out, err = call(sweep.command, *SEEDS, "--jobs", "2", *REST)
    thread.join()
    assert status == 1 and out == "" and "failed" not in err
    assert err.splitlines()[-2:] == [
        "interrupted: waiting for 2 runs to write their checkpoints",
        "interrupted: run the same command again",
    ]
    stopped = {path.name: path.read_text(encoding="utf-8") for path in Path("out").glob("*.interrupted")}
    assert stopped == {f"vae-normal-elbo-{seed}.interrupted": "once " for seed in (0, 1)}


def test_one_at_a_time(fake: Any, call: Call) -> None:
    """Refused while another sweep, or a run that it left behind, has the directory."""
    fake(False)
    lock = sweep.locked(Path("out"))
    status, _, err = call(sweep.command, *SEEDS, *REST)
    assert status == 2 and err.count("\n") == 1 and "--out out: another sweep writes there" in err
    left_behind = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    os.close(lock)
    assert call(sweep.command, *SEEDS, *REST)[0] == 2
    left_behind.kill()
    left_behind.wait()
    assert "done      vae-normal-elbo-0" in call(sweep.command, *SEEDS, *REST)[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["MODEL"]),
        (("vae", "--guides", "normal", "--objectives", "elbo"), ["--out"]),
        (("vae", "--seeds", "--out", "out"), ["--seeds", "at least one"]),
        (("vae", "--vary", "epochs", "--out", "out"), ["--vary epochs", "at least one value"]),
        (
            ("vae", "--vary", "epochs", "1", "--out", "out", "--", "--epochs", "2"),
            ["--epochs: the sweep sets this option itself"],
        ),
        (("vae", "--vary", "guide", "flow", "--out", "out"), ["--vary guide: use the sweep's own option"]),
        (("vae", "--vary", "lr", "1e-3", "--out", "out"), ["--lr", "did you mean --learning-rate"]),
        (("vae", "--guides", "--objectives", "elbo", "--seeds", "1", "--out", "out"), ["--guides", "at least one"]),
        ((*SEEDS, "--jobs", "0"), ["--jobs 0", "at least 1"]),
        ((*SEEDS, "--epochs", "3"), ["--epochs"]),
        ((*SEEDS, "--", "--epoch", "3"), ["--epoch", "did you mean --epochs", "ppl_gen.fit vae --help"]),
        ((*SEEDS, "--", "--epochs", "0"), ["--epochs 0"]),
        ((*SEEDS, "--", "--seed", "0"), ["--seed: the sweep sets this option itself"]),
        ((*SEEDS, "--", "--guide=normal"), ["--guide: the sweep sets this option itself"]),
        ((*SEEDS, "--", "--dry_run"), ["--dry-run: the sweep sets this option itself"]),
        (
            ("vae", *SEEDS[1:4], "iwae:5", *SEEDS[5:], "--", "--num-particles", "3"),
            ["--num-particles: the sweep sets this option itself"],
        ),
        (("vae", *SEEDS[1:4], "vimco:x", *SEEDS[5:]), ["--num-particles", "x"]),
        (
            ("vae", "--guides", "flow,num-transforms=1", "--out", "out", "--", "--guide.num-transforms", "3"),
            ["--guide.num-transforms: the sweep sets this option itself"],
        ),
        (
            ("vae", "--guides", "flow,num-transforms=1", "--vary", "guide.num-transforms", "2", "--out", "out"),
            ["--guide.num-transforms: the sweep sets this option twice"],
        ),
        (
            ("vae", "--vary", "epochs", "1", "--vary", "epochs", "3", "--out", "out"),
            ["--epochs: the sweep sets this option twice"],
        ),
        (
            ("vae", "--objectives", "muprop,baseline=True", "--out", "out", "--", "--objective.no-baseline"),
            ["--objective.baseline: the sweep sets this option itself"],
        ),
        (
            ("vae", "--objectives", "vimco:5", "--vary", "num-particles", "3", "--out", "out"),
            ["sets this option twice"],
        ),
        (("vae", *SEEDS[1:4], "elbo", "elbo", *SEEDS[5:]), ["two runs would have the name vae-normal-elbo-0"]),
        (("vea", *SEEDS[1:]), ["unknown model 'vea'"]),
        (("vae", "--guides", "nrmal", *SEEDS[3:]), ["unknown guide 'nrmal'", "did you mean 'normal'"]),
        (("vae", "--guides", "flow,spline", *SEEDS[3:]), ["--guides flow,spline", "as in flow,transform=iaf"]),
        (("vae", "--guides", "flow,transfrm=iaf", *SEEDS[3:]), ["--guide.transfrm", "did you mean --guide.transform"]),
        (("vae", *SEEDS[1:4], "miwae:8,groups", *SEEDS[5:]), ["--objectives miwae:8,groups", "as in miwae:8,groups=4"]),
        (("vae", *SEEDS[1:4], "miwae:8,group=4", *SEEDS[5:]), ["--objective.group", "did you mean --objective.groups"]),
        (("vae", *SEEDS[1:4], "elbow", *SEEDS[5:]), ["unknown objective 'elbow'", "did you mean 'elbo'"]),
        ((*SEEDS[:-1], "/proc/out"), ["--out /proc/out", "cannot be written"]),
        ((*SEEDS[:-1], ""), ["--out '': is empty"]),
        (("vae", "--guides", "", *SEEDS[3:]), ["--guides '': is empty"]),
        ((*SEEDS, "--", "--data", "nope"), ["--data nope"]),
        ((*SEEDS, "--", "--data", "digits", "--train-size", "9999"), ["--train-size 9999"]),
        ((*SEEDS, "--", "--data", "digits", "--hidden-dims", "0"), ["--hidden-dims"]),
    ],
)
def test_refused_before_anything_starts(
    elsewhere: Path, call: Call, arguments: tuple[str, ...], words: list[str]
) -> None:
    status, out, err = call(sweep.command, *arguments)
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("error: "), err
    for word in words:
        assert word in err, err
    assert not list(elsewhere.iterdir())
