import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# One thread for each of the processes that share the tests, and for the commands that they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import matplotlib.font_manager  # noqa: F401  (its cache, which it tells of on stderr, is built here and in no test)
import torch

from ppl_gen.core import cli

# How fast a machine is, and what it found on another day, decide nothing.
hypothesis.settings.register_profile(
    "anywhere",
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("anywhere")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def all_pictures() -> None:
    """Fits draw the latent space, too."""


@pytest.fixture(autouse=True)
def _few_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the latent space takes longer than the small fits themselves, and so does finding room for labels, for
    which all is drawn twice: no test has it but those that ask for it, share a run of their module, or are of
    figures."""
    if "all_pictures" not in request.fixturenames and "figures" not in request.path.parts:
        monkeypatch.setattr("ppl_gen.report.pictures.latent_space.draw", lambda *arguments: iter(()))
        monkeypatch.setattr("matplotlib.figure.Figure.get_layout_engine", lambda figure: None)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without data sets or runs, and no data folder named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPL_GEN_DATA", raising=False)
    return tmp_path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command as its module does; returns exit status, standard output and standard error."""

    def run(command: Callable[[list[str]], Any], *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ppl_gen", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main(command)
        out, err = capsys.readouterr()
        assert isinstance(exit.value.code, int)
        return exit.value.code, out, err

    return run
