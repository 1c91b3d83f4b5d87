"""Classes by name, and in files of a user's own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import QUICK
from own_classes import GUIDE
from torch import nn

import ppl_gen
from ppl_gen import evaluate, fit
from ppl_gen.core import components
from ppl_gen.inference.statements import adopt

Call = Callable[..., tuple[int, str, str]]

PRIOR = """
import pyro.distributions as dist
import torch
from torch import nn


class Wide(nn.Module):
    \'\'\'A wide Gaussian.

    :param scale: standard deviation.
    \'\'\'

    def __init__(self, latent_dim, *, scale: float = 1.5):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.scale = scale

    def prior(self):
        return dist.Normal(self.loc, self.scale).to_event(1)
"""


def test_a_prior_of_ones_own(elsewhere: Path, call: Call) -> None:
    """From a file, with options; named again to be evaluated, never imported otherwise."""
    Path("my_prior.py").write_text(PRIOR)
    named = ("--prior", "my_prior.py:Wide")
    status, out, err = call(fit.command, "vae", *named, "--help")
    assert status == 0 and "--prior.scale" in out and "standard deviation" in out
    status, out, err = call(fit.command, "vae", *named, "--prior.scale", "2", *QUICK, "--out", "run")
    assert status == 0, err
    assert "prior my_prior.py:Wide" in out
    assert json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))["prior"] == "my_prior.py:Wide"
    status, _, err = call(evaluate.command, "run")
    assert status == 2 and "name it again: --prior my_prior.py:Wide" in err
    assert call(evaluate.command, "run", *named)[0] == 0
    status, _, err = call(evaluate.command, "run", "--prior", "flow")
    assert status == 2 and "was fitted with my_prior.py:Wide" in err


def test_a_guide_in_a_file(elsewhere: Path, call: Call) -> None:
    Path("my_guide.py").write_text(GUIDE)
    reference = "my_guide.py:MyGuide"
    options = ("--guide", reference, "--guide.scale", "0.25", "--guide.wide")
    assert call(fit.command, "vae", *options, *QUICK, "--out", "run")[0] == 0
    config = json.loads(Path("run/config.json").read_text(encoding="utf-8"))
    assert config["guide"] == reference and config["guide_options"] == {"scale": 0.25, "wide": True}
    first = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))

    for command, arguments in ((evaluate.command, ["run"]), (fit.command, ["--resume", "run"])):
        status, _, err = call(command, *arguments)
        assert status == 2
        assert err == f"error: run: was fitted with the guide {reference}; name it again: --guide {reference}\n"
        status, _, err = call(command, *arguments, "--guide", "normal")
        assert status == 2 and "was fitted with my_guide.py:MyGuide" in err
        status, _, err = call(command, *arguments, "--guide", reference)
        assert status == 0 and "has changed" not in err
    again = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))
    assert again["elbo"] == first["elbo"]
    assert type(ppl_gen.load("run", guide=reference).guide).__name__ == "MyGuide"
    with pytest.raises(ppl_gen.BadInput, match="name it again"):
        ppl_gen.load("run")

    Path("elsewhere.py").write_text(GUIDE + "\n# changed\n")
    status, _, err = call(evaluate.command, "run", "--guide", "elsewhere.py:MyGuide")
    assert status == 0 and "warning: elsewhere.py:MyGuide has changed since the run was fitted" in err


def test_a_class_of_a_file_by_its_name_and_as_an_object(
    elsewhere: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same class in either form is no change; another one is."""
    Path("my_guide.py").write_text(GUIDE)
    reference = "my_guide.py:MyGuide"
    assert call(fit.command, "vae", "--guide", reference, *QUICK, "--out", "by-name")[0] == 0
    own = components.find("guide", reference)
    options: Any = {"data": "digits", "train_size": 50, "epochs": 1, "num_samples": 5, "latent_dim": 2, "quiet": True}
    run = ppl_gen.Run.fit("vae", guide=own, out="as-object", **options)
    for shown in (ppl_gen.load("by-name", guide=own), ppl_gen.load("as-object", guide=reference)):
        assert type(shown.guide).__name__ == "MyGuide"
    assert (
        json.loads((run.path / "config.json").read_text(encoding="utf-8"))["guide_sha256"]
        and not capsys.readouterr().err
    )

    Path("my_guide.py").write_text(GUIDE.replace("self.scale)", "1 * self.scale)"))
    ppl_gen.load("as-object", guide=reference)
    assert f"{reference} has changed since the run was fitted" in capsys.readouterr().err


def test_a_module_with_the_name_of_one_of_the_packages_own(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`flow:MyGuide` is a class of a module that can be imported, not the flow with an option."""
    Path("flow.py").write_text(GUIDE)
    monkeypatch.syspath_prepend(elsewhere)
    assert components.find("guide", "flow:MyGuide").__name__ == "MyGuide"
    with pytest.raises(ppl_gen.BadInput, match="cannot be imported"):
        components.find("objective", "elsewhere.py.x:5")


def test_the_fingerprint_of_a_class() -> None:
    """Methods and constants count; what a run makes of an instance with `pyro.param` statements does not."""

    def made(shift: float, factor: int) -> Any:
        class Guide(nn.Module):
            SHIFT = shift

            def guide(self, x: Any) -> None:
                weight = pyro.param("weight", torch.zeros(3, 1))
                with pyro.plate("data", len(x)):
                    pyro.sample("z", dist.Normal(x @ weight + self.SHIFT, 1.0).to_event(1))

        if factor == 2:
            Guide.guide = lambda self, x: None  # type: ignore[method-assign]
        return Guide

    first = components.fingerprint(made(0.0, 1))
    assert components.fingerprint(made(0.0, 1)) == first
    assert len({first, components.fingerprint(made(1.0, 1)), components.fingerprint(made(0.0, 2))}) == 3
    instance, model = made(0.0, 1)(), nn.Module()
    model.model = lambda x: None  # type: ignore[assignment]
    adopt(model, instance, torch.zeros(3, 3))
    assert instance.param_statements and components.fingerprint(instance) == first


@pytest.mark.parametrize("kind", ["model", "guide", "prior"])
def test_files_have_the_names_of_their_classes(kind: components.Kind) -> None:
    """So that a name that is mistyped is refused before anything is imported."""
    assert components.names(kind) == list(components.known(kind))
