"""Calls of Python that reproduce a run: they give the configuration that the run recorded."""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ppl_gen.core.calls import arguments_of, fit_call, method_call, of_session, open_call, to_define
from ppl_gen.data.loading import load_data
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.evaluation.use_options import options_from
from ppl_gen.experiment.config import Config, Given, configure
from ppl_gen.guides.normal import Normal
from ppl_gen.report.options import default_config

IMAGES = (torch.rand(40, 8, 8) > 0.5).float()


class Mine(Normal):
    def __init__(self, *arguments: Any, wide: bool = False, **options: Any):
        super().__init__(*arguments, **options)


def harmonic(model: Any, guide: Any, x: torch.Tensor) -> torch.Tensor: ...  # type: ignore[empty-body]


class Weights:
    def __init__(self, *, times: int = 2): ...

    def estimate(self, model: Any, guide: Any, x: torch.Tensor) -> torch.Tensor: ...  # type: ignore[empty-body]


Session = type("Session", (Normal,), {"__module__": "__main__"})


def configured(*model: Any, out: Any = None, **arguments: Any) -> tuple[Config, Given]:
    """The configuration for arguments of `Run.fit`."""
    kinds = {kind: arguments.pop(kind, None) for kind in ("guide", "prior", "objective", "data")}
    return configure(Given(*model, **kinds), **arguments)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("vae", {}),
        ("vae", {"latent_dim": 2, "hidden_dims": (16, 8), "epochs": 3, "train_size": 300, "seed": 1, "num_samples": 9}),
        ("vae", {"guide": "flow", "guide_options": {"transform": "iaf"}, "objective": "iwae", "num_particles": 5}),
        ("vae", {"guide": Mine, "guide_options": {"wide": True}}),
        ("vae", {"guide": Session, "data": {"train": IMAGES, "test": IMAGES}}),
        ("vae", {"estimator": ["importance", harmonic], "num_samples": 5}),
        ("vae", {"estimator": Weights, "estimator_options": {"times": 3}}),
        ("gan", {"hidden_dims": (8,)}),
        ("mixture", {"prior": None, "binarization": "threshold"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "defaults",
)
def test_the_call_gives_the_configuration_of_the_run(model: str, arguments: dict[str, Any]) -> None:
    config, given = configured(model, **({"data": "digits"} | arguments))
    recorded = config.to_json(load_data(config.data, given.data), given)
    call = fit_call(recorded, default_config(recorded), Path("runs/x"))
    names = {"ppl_gen": SimpleNamespace(Run=SimpleNamespace(fit=configured))}
    exec(call, names | {"Session": Session, "images": arguments.get("data")}, names)
    assert names["run"][0].resolved(given) == config.resolved(given)  # type: ignore[index]
    assert ("Session" in call) == ("data=images" in call) == (arguments.get("guide") is Session)


def test_what_only_a_session_has() -> None:
    config = {"model": "instance:VAE", "guide": "my.py:Mine", "data": {"data": "array"}, "training": {}}
    assert of_session(config) == {"model": "VAE(...)", "data": "images"}
    expected = 'run = ppl_gen.Run.open("runs/x", model=VAE(...), guide="my.py:Mine", data=images)'
    assert ast.unparse(ast.parse(open_call(config, Path("runs/x")))) == ast.unparse(ast.parse(expected))
    estimators = ["importance", "m.py:f", "instance:A", "class:B", "function:c"]
    assert of_session({"estimator": estimators}) == {"estimator": '["importance", "m.py:f", A(...), B, c]'}
    assert to_define(config | {"estimator": estimators}) == ["VAE(...)", "images", "A(...)", "B", "c"]
    assert method_call("evaluate", {"estimator": ("auto", "class:B")}) == 'run.evaluate(estimator=["auto", B])'


def test_options_of_a_command_are_those_of_the_method() -> None:
    words = ["--num-samples", "auto", "--settling.most-samples", "65536"]
    options = arguments_of(words)
    assert method_call("evaluate", options) == 'run.evaluate(num_samples="auto", settling={"most_samples": 65536})'
    found = options_from(EvaluationOptions, None, options)
    assert (found.num_samples, found.settling.most_samples) == ("auto", 65536)
