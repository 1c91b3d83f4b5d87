"""The configuration of a run: options from Python, a class that has changed, and its JSON."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import FEW, Laplace
from torch import Tensor, nn

from ppl_gen import fit
from ppl_gen.core.errors import BadInput
from ppl_gen.data.splits import Data
from ppl_gen.experiment.arguments import parse
from ppl_gen.experiment.config import Config, Given, check_same, config_of, configure, starting_config, with_options
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]


def test_a_recorded_configuration_is_read_again(tmp_path: Path, data: Data) -> None:
    """With every default written out, so that a later default changes no run."""
    config = with_options(
        Config(model="vae", guide="mixture"),
        Given(),
        {
            "hidden_dims": [8, 4],
            "guide_options": {"num_components": 3},
            "train_size": 200,
            "learning_rate": 1,
            "num_samples": 7,
            "prior": "flow",
        },
    )
    run = RunDirectory.create(tmp_path / "run", "run", config.to_json(data))
    content = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    assert content["model_options"]["latent_dim"] == 20 and content["guide_options"]["num_components"] == 3
    assert content["training"]["learning_rate"] == 1.0 and "batch_size" in content["training"]
    again = config_of(RunDirectory.open(run.path), Given())
    assert again == replace(config.resolved(Given()), data=again.data)
    assert again.model_options["hidden_dims"] == (8, 4) and again.data.data == "digits"
    check_same(run, config, Given())
    with pytest.raises(BadInput, match="was made with other options: num_components is 3, not 4"):
        check_same(run, replace(config, guide_options={"num_components": 4}), Given())
    # A run that is older than an option had it at its default.
    assert content["model_options"].pop("activation") == "relu"
    (run.path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    check_same(RunDirectory.open(run.path), config, Given())
    tanh = replace(config, model_options={**config.model_options, "activation": "tanh"})
    with pytest.raises(BadInput, match="was made with other options: activation is relu, not tanh"):
        check_same(RunDirectory.open(run.path), tanh, Given())


def test_where_a_configuration_starts(finished: Path) -> None:
    """At the defaults of the model's class, or at the classes and options of another run."""
    mixture = starting_config(Given("mixture"))
    assert (mixture.model, mixture.guide, mixture.prior) == ("mixture", "enumerated", None)
    assert starting_config(Given("vae", guide="flow")).guide == "flow"
    there = starting_config(Given(), str(finished))
    assert there.model_options["hidden_dims"] == (16,) and there.init_from == str(finished)
    other = starting_config(Given(guide="flow"), str(finished), refit_guide=True)
    assert other.fixed_model and other.guide == "flow" and other.guide_options == {}
    assert other.model_options == there.model_options
    with pytest.raises(BadInput, match="needs the run of the model"):
        starting_config(Given("vae"), refit_guide=True)
    with pytest.raises(BadInput, match=r"name a model: .*belief-net.*vae"):
        starting_config(Given())


def test_changed_code_is_told(elsewhere: Path, x: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.fit("vae", guide=Laplace, data=x, **FEW)
    assert not capsys.readouterr().err

    class Other(nn.Module):
        def __init__(self, data_dim: int, latent_dim: int, *, units: int = 5):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(data_dim, units), nn.ELU(), nn.Linear(units, 2 * latent_dim))

        def guide(self, x: Tensor) -> None: ...

    Other.__name__ = "Laplace"
    _ = Run.open(run.path, guide=Other, data=x).guide
    assert "has changed since the run was fitted" in capsys.readouterr().err


class EightParticles:
    """An objective with a default of its own."""

    def __init__(self, *, num_particles: int = 8):
        self.num_particles = num_particles

    def surrogate(self, terms: Any) -> Tensor:
        assert len(terms.log_weight) in (1, self.num_particles)  # it is tried with one sample
        mean: Tensor = terms.log_weight.mean(0)
        return mean


def test_the_particles_of_an_own_objective(elsewhere: Path, x: Tensor, call: Call) -> None:
    run = Run.fit("vae", data=x, objective=EightParticles, **FEW)
    assert run.config.training.num_particles == 8
    run = Run.fit("vae", data=x, objective=EightParticles, num_particles=3, **FEW)
    assert run.config.training.num_particles == 3
    Path("mine.py").write_text(
        "class Mine:\n"
        "    def __init__(self, *, num_particles: int = 5):\n"
        "        self.num_particles = num_particles\n"
        "    def surrogate(self, terms):\n"
        "        return terms.log_weight.mean(0)\n"
    )
    small = ("--data", "digits", "--train-size", "100", "--epochs", "1", "--num-samples", "5", "--hidden-dims", "4")
    assert call(fit.command, "vae", "--objective", "mine.py:Mine", *small, "--out", "run")[0] == 0
    assert Run.open("run").config.training.num_particles == 5


SIZES = """
class Sizes:
    def __init__(self, *, num_particles: int = 5, sizes: tuple[int, ...] = (1, 4)):
        self.num_particles, self.sizes = num_particles, sizes

    def surrogate(self, terms):
        assert isinstance(self.sizes, tuple)
        samples = terms.log_weight.split(self.sizes if len(terms.log_weight) == sum(self.sizes) else 1)
        return sum(each.logsumexp(0) for each in samples)
"""


def test_a_start_from_a_run_of_an_own_objective_with_options(elsewhere: Path, call: Call) -> None:
    """Neither the objective nor its options are taken from that run; both may be named anew. A fit of the guide alone
    does the same. The options that are recorded are those that the objective was given."""
    Path("mine.py").write_text(SIZES)
    small = ("--data", "digits", "--train-size", "60", "--epochs", "1", "--num-samples", "5", "--hidden-dims", "4")
    small = (*small, "--latent-dim", "1", "--binarization", "threshold")
    mine = ("--objective", "mine.py:Sizes")
    status, _, err = call(fit.command, "vae", *small, *mine, "--objective.sizes", "2", "3", "--out", "first")
    assert status == 0, err
    last = ("--init-from", "first", "--epochs", "1", "--num-samples", "5")
    cases: list[tuple[tuple[str, ...], str, int, dict[str, Any]]] = [
        ((), "elbo", 1, {}),
        (mine, "mine.py:Sizes", 5, {"sizes": (1, 4)}),
        ((*mine, "--objective.sizes", "4", "--num-particles", "4"), "mine.py:Sizes", 4, {"sizes": (4,)}),
        (("--refit-guide", "flow", *mine), "mine.py:Sizes", 5, {"sizes": (1, 4)}),
    ]
    for options, name, particles, own in cases:
        config, _ = parse([*last, *options])
        found = config.training.objective, config.training.num_particles, config.objective_options
        assert found == (name, particles, own) and config.init_from == "first"
    with pytest.raises(BadInput, match=r"Unrecognized options: objective\.sizes"):
        parse([*last, "--objective.sizes", "5"])
    status, _, err = call(fit.command, *last, *mine, "--out", "run1")
    assert status == 0, err
    # Options of several values are found again as they were given.
    config, given = configure(Given(objective="mine.py:Sizes"), "first", epochs=1, num_samples=5)
    check_same(RunDirectory.open("run1"), config, given)
    assert Run.open("run1", objective="mine.py:Sizes").resume(2, quiet=True).config.training.epochs == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": "3"}, "learning_rate '3': must be a number"),
        ({"hidden_dims": 8}, "hidden_dims 8: must be a list"),
        ({"guide_options": {"units": "4"}}, "guide.units '4': must be a whole number"),
        ({"data": {"test": torch.zeros(9, 2, 2)}}, "data: needs a split 'train'"),
        ({"data": {"trian": torch.zeros(9, 2, 2)}}, "data: unknown split 'trian'; did you mean 'train'?"),
        ({"data": 5}, "data [train]: is of type int, not images"),
        ({"lr": 3}, "lr: unknown option of fit; did you mean 'learning_rate'?"),
        ({"units": 3}, "units: is an option of the guide; give guide_options={'units': …}"),
        ({"guide_options": [1]}, "guide_options [1]: must be a dictionary of options by name"),
        ({"prior_options": "units"}, "prior_options 'units': must be a dictionary of options by name"),
        ({"guide_options": {1: 2}}, "guide_options {1: 2}: must be a dictionary of options by name"),
        ({"out": 3}, "out 3: must be a path"),
        ({"refit_guide": "flow"}, "refit_guide: in Python, give guide=…, init_from=… and fixed_model=True"),
        ({"fixed_model": True}, "fixed_model: needs the run of the model; name it with init_from"),
        ({"training": 3}, "training: unknown option of fit"),
        ({"on_epoch": 3}, "on_epoch=3: must be a function of two arguments, the run and its metrics"),
    ],
)
def test_bad_arguments(elsewhere: Path, x: Tensor, options: dict[str, Any], message: str) -> None:
    """One sentence of arguments, before anything is written."""
    with pytest.raises(BadInput) as error:
        Run.fit("vae", **{"guide": Laplace, "data": x, **FEW, **options})
    assert str(error.value).startswith(message)
    assert list(elsewhere.iterdir()) == []
