"""Exceptions of a user's own code: one line with the user's frame and what is kept; in Python, the exception itself."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fits import FEW, SHORT
from torch import Tensor

from ppl_gen import evaluate, fit, sample
from ppl_gen.core.errors import BadInput
from ppl_gen.run import Run
from ppl_gen.training.loop import train

Call = Callable[..., tuple[int, str, str]]

OWN = """
import os, sys
import pyro, torch
import pyro.distributions as dist
from torch import nn
from ppl_gen.models.vae import VAE

steps = 0


class Silent(Exception):
    def __str__(self):
        raise ValueError


class Quits:
    def __str__(self):
        sys.exit(0)


def fails():
    how = os.environ["HOW"]
    if how == "value":
        raise ValueError("too wide\\nand more\\nlines")
    if how == "colon":
        raise ValueError("the cause is:\\n   the width")
    if how == "exit":
        sys.exit(0)
    if how == "exit 3":
        sys.exit("3")
    if how == "pipe":
        raise BrokenPipeError(32, "Broken pipe")
    if how == "torch":
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    if how == "pyro":
        dist.Normal(torch.tensor([float("nan")] * 9), 1.0, validate_args=True)
    if how == "silent":
        raise Silent
    if how == "group":
        raise ExceptionGroup("several", [KeyError("a"), ValueError("b")])
    if how == "deep":
        fails()
    if how == "memory":
        raise MemoryError
    if how == "allocator":
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")


def at(place):
    if os.environ.get("AT") == place:
        fails()


at("import")


class Guide(nn.Module):
    def __init__(self, data_dim, latent_dim):
        super().__init__()
        at("constructor")
        self.loc = nn.Linear(data_dim, latent_dim)

    def guide(self, x):
        global steps
        steps += self.training and torch.is_grad_enabled()
        at("reading")
        if steps > 4:  # those before are trials
            at("training" if self.training else "evaluation")
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), 0.5).to_event(1))


class Model(VAE):
    def pictures(self):
        at("drawing")
        return {}


class Objective:
    num_particles = 1

    def surrogate(self, terms):
        if steps > 4:  # those before are trials
            at("objective")
        return terms.log_weight.mean(0)


def images():
    at("data")
    return torch.rand(80, 4, 4).bernoulli()
"""
SMALL = ("--batch-size", "20", "--hidden-dims", "4", "--latent-dim", "1")
FIT = ("own.py:Model", "--guide", "own.py:Guide", *SHORT, *SMALL)
RESUME = "--resume run --model own.py:Model --guide own.py:Guide"
HINT = "(PPL_GEN_TRACEBACK=1 shows the whole trace)"
TOLD = {
    "value": "ValueError: too wide",
    "colon": "ValueError: the cause is: the width",
    "exit": "SystemExit: 0",
    "exit 3": "SystemExit: 3",
    "pipe": "BrokenPipeError: [Errno 32] Broken pipe",
    "torch": "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)",
    "pyro": "ValueError: Expected parameter loc",
    "silent": "Silent",
    "group": "ExceptionGroup: several (2 sub-exceptions); the first is KeyError: 'a'",
    "deep": "RecursionError: maximum recursion depth exceeded",
    "memory": "the memory of this machine does not suffice; choose",
    "allocator": "the memory of this machine does not suffice; choose",
}


@pytest.fixture
def own(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a file of a model, a guide and images, of which one fails in a place, in a way."""

    def write(place: str, how: str) -> None:
        # Every test has a module of its own, which counts its steps.
        Path("own.py").write_text(f"{OWN}# {elsewhere}", encoding="utf-8")
        monkeypatch.setenv("AT", place)
        monkeypatch.setenv("HOW", how)

    return write


def _line(err: str) -> str:
    """The last line of standard error, the only one that is no progress."""
    lines = [line for line in err.splitlines() if not line.startswith("epoch")]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


@pytest.mark.parametrize("how", TOLD)
def test_in_training(own: Any, call: Call, how: str) -> None:
    """One line, which ends with the command that continues."""
    own("training", how)
    status, _, err = call(fit.command, *FIT, "--out", "run")
    line = _line(err)
    assert status == 1 and line.startswith(f"error: {TOLD[how]}")
    assert line.endswith(f"{HINT}; the last checkpoint is kept in run; continue with: python -m ppl_gen.fit {RESUME}")
    if "memory" not in TOLD[how]:
        assert "own.py:" in line and ", in fails) " in line


@pytest.mark.parametrize("how", ["value", "exit", "pipe"])
def test_in_an_objective(own: Any, call: Call, how: str) -> None:
    """An `OSError` is of the user's code, too."""
    own("objective", how)
    status, _, err = call(fit.command, *FIT, "--objective", "own.py:Objective", "--out", "run")
    line = _line(err)
    assert status == 1 and TOLD[how] in line and "own.py:" in line and ", in fails) " in line
    assert "the last checkpoint is kept in run; continue with: " in line


@pytest.mark.parametrize("how", ["value", "exit", "pipe"])
@pytest.mark.parametrize("place", ["import", "constructor", "reading", "data"])
def test_before_the_first_step(own: Any, call: Call, elsewhere: Path, place: str, how: str) -> None:
    """It is bad input, and no run is made."""
    own(place, how)
    data = ("--data", "own.py:images") if place == "data" else ()
    status, _, err = call(fit.command, *FIT, *data, "--out", "run")
    assert status == 2 and TOLD[how] in _line(err) and "own.py:" in err and ", in fails)" in err
    assert "continue" not in err and not Path("run").exists()


def test_after_training(own: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """In evaluation the trained run is kept, and in drawing the picture alone is lost, but for `sys.exit`."""
    own("", "exit")

    def trained(*arguments: Any, **options: Any) -> None:
        train(*arguments, **options)
        monkeypatch.setenv("AT", "evaluation")

    with monkeypatch.context() as patch:
        patch.setattr("ppl_gen.run.train", trained)
        status, _, err = call(fit.command, *FIT, "--out", "run")
    assert status == 1 and "SystemExit: 0" in _line(err)
    kept = f"training is done, and its weights are kept in run; continue with: python -m ppl_gen.fit {RESUME}\n"
    assert err.endswith(kept)
    named = ("--model", "own.py:Model", "--guide", "own.py:Guide")
    for command, options in ((evaluate.command, ("--num-samples", "10")), (sample.command, ("--source", "image"))):
        status, out, err = call(command, "run", *options, *named)
        assert status == 1 and out == "" and "SystemExit: 0" in _line(err) and "continue" not in err
    monkeypatch.setenv("AT", "drawing")
    status, _, err = call(fit.command, *RESUME.split())
    assert status == 1 and "SystemExit: 0" in err.splitlines()[-1] and "continue with: " in err.splitlines()[-1]
    monkeypatch.setenv("HOW", "value")
    status, out, err = call(fit.command, *RESUME.split())
    assert status == 0 and "log p(x)" in out and "warning: no picture" in err and "ValueError: too wide" in err


def test_the_whole_trace(own: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands above the line if it is asked for, also of an exception that became bad input."""
    own("training", "value")
    monkeypatch.setenv("PPL_GEN_TRACEBACK", "1")
    for place in ("training", "reading"):
        monkeypatch.setenv("AT", place)
        _, _, err = call(fit.command, *FIT, "--out", place)
        assert "Traceback (most recent call last):" in err and "and more\nlines" in err and "own.py" in err
        assert err.splitlines()[-1].startswith("error: ") and "ppl_gen" in err.split("error: ")[0]


def test_in_python_the_exception_is_raised_as_it_is(elsewhere: Path, x: Tensor) -> None:
    def hook(run: Run, metrics: dict[str, Any]) -> None:
        raise KeyError("mine")

    for hooked, kind in ((hook, KeyError), (lambda *_: os.sys.exit(0), SystemExit)):
        with pytest.raises(kind) as error:
            Run.fit("vae", data=x, on_epoch=hooked, out=kind.__name__, **FEW)
        assert error.value.__notes__ == [
            f"the last checkpoint is kept in {kind.__name__}",
            f"continue with: Run.open('{kind.__name__}', data=…).resume()",
        ]
    with pytest.raises(BadInput) as refused:
        Run.fit("vae", data=x, learning_rate=-1.0, **FEW)
    assert not hasattr(refused.value, "__notes__")
