"""Bounds on images from a run's model, as an evaluation makes, records and shows them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimates import ABOUT, importance
from torch import Tensor, nn
from written import WIDE, write

from ppl_gen.comparison import Comparison
from ppl_gen.core.errors import BadInput
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.evaluation.estimating import evaluate
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment.config import Config, Given
from ppl_gen.experiment.fitted import Assembled, Fitted
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.inference.annealed import Annealing
from ppl_gen.report.sections import bounds

ANNEALED: dict[str, Any] = {"estimator": "annealed", "annealed": Annealing(5, num_chains=3, leapfrog_steps=2)}
MODELS: dict[str, dict[str, Any]] = {
    "belief-net": {"guide": "bernoulli", "model_options": {"latent_dim": 4, "init_scale": 1.0}},
    "factor-analysis": {"guide": "exact-gaussian", "model_options": {"latent_dim": 2}},
    "mixture": {"guide": "enumerated", "model_options": {"num_components": 3}},
}


def _fitted(name: str, to: Path) -> Fitted:
    """A run with the weights that training would start from."""
    images = DataOptions("digits", "none" if name == "factor-analysis" else "threshold", train_size=100)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        made = Assembled.make(Config(name, **MODELS[name], data=images, num_samples=30), load_data(images), Given())
    return made.within(RunDirectory.create(to / name, "run", {}))


def _evaluated(fitted: Fitted, **chosen: Any) -> Evaluation:
    return evaluate(fitted, EvaluationOptions(num_images=10, **chosen), quiet=True)


def test_they_stand_beside_the_rest_and_change_nothing_of_it(tmp_path: Path) -> None:
    """Every other number is that of an evaluation without them, to the bit. Enumeration has the truth between them, of
    64 images (false alarms 1e-4)."""
    fitted = _fitted("belief-net", tmp_path)
    without, evaluation = _evaluated(fitted), _evaluated(fitted, sandwich=64)
    found = evaluation.bidirectional_importance
    assert found is not None and evaluation.bidirectional is None
    assert found["num_images"] == 64 and found["num_samples"] == 30 and evaluation.options["sandwich"] == 64
    assert without.options["sandwich"] == 0 and without.bidirectional_importance is None
    for side in ("exact_minus_lower", "upper_minus_exact"):
        assert -4 * found[side]["se"] < found[side]["mean"] < 2
    assert found["width"]["mean"] > 0.1
    same = evaluation.summary.keys() - {"sandwich_importance", "options", "seconds"}
    assert {key: evaluation.summary[key] for key in same} == {key: without.summary[key] for key in same}
    assert "30 importance samples on 64 images from the model: log p(x) between" in str(evaluation)


def test_annealing_and_importance_sampling_have_the_same_images(tmp_path: Path) -> None:
    """Whose exact log p(x) is therefore the same. The guide is the posterior here, so that its bounds are exact."""
    fitted = _fitted("factor-analysis", tmp_path)
    evaluation = _evaluated(fitted, sandwich=12, **ANNEALED)
    chains, found = evaluation.bidirectional, evaluation.bidirectional_importance
    assert chains is not None and found is not None
    assert chains["num_images"] == found["num_images"] == 12 and chains["exact"] == found["exact"]
    assert found["lower"]["mean"] == pytest.approx(found["exact"]["mean"], abs=1e-3)
    assert found["upper"]["mean"] == pytest.approx(found["exact"]["mean"], abs=1e-3)
    assert chains["width"]["mean"] > 0.1 and "num_samples" not in chains
    none = _evaluated(fitted, sandwich=0, **ANNEALED)
    assert none.bidirectional is None and none.bidirectional_importance is None


def test_what_has_none(tmp_path: Path) -> None:
    fitted = _fitted("mixture", tmp_path)
    with pytest.raises(BadInput, match=r"sandwich 7: log p\(x\) is exact, so no importance samples are drawn; add"):
        _evaluated(fitted, sandwich=7)
    from_prior = _evaluated(fitted, sandwich=7, estimator="importance").bidirectional_importance
    assert from_prior is not None and from_prior["num_images"] == 7
    with pytest.raises(BadInput, match="gaps: leave out sandwich 7"):
        EvaluationOptions(gaps=True, sandwich=7)


class _Drawer(nn.Module):
    """A model and a guide with labels; `draws` is False for a model that cannot draw images."""

    def __init__(self, draws: bool):
        super().__init__()
        self.draws, self.loc = draws, nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, n: int = 1) -> None:
        count = n if x is None else len(x)
        if x is None and y is not None and not self.draws:
            raise RuntimeError("not without images")
        y = torch.zeros(count) if y is None else y
        with pyro.plate("data", count):
            z = pyro.sample("z", dist.Normal(y.float().unsqueeze(-1) + self.loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(count, 4), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        assert y is not None
        with pyro.plate("data", len(x)):
            loc = (x.sum(1, keepdim=True) + y.float().unsqueeze(-1) + self.loc) / 5
            pyro.sample("z", dist.Normal(loc, 5**-0.5).to_event(1))  # the posterior


@pytest.mark.parametrize("draws", [True, False])
def test_labels_are_those_of_the_images(tmp_path: Path, draws: bool) -> None:
    """Repeated for more images than there are. With the posterior as guide, the bounds are equal."""
    pair, x, y = _Drawer(draws), torch.rand(20, 2, 2), torch.arange(20) % 3
    data = load_data(DataOptions("array", "none"), dict.fromkeys(("train", "validation", "test"), (x, y)))
    config = Config("instance:_Drawer", guide="instance:_Drawer", data=DataOptions("array", "none"), num_samples=10)
    fitted = Assembled.make(config, data, Given(pair, pair)).within(RunDirectory.create(tmp_path / "run", "run", {}))
    if not draws:
        with pytest.raises(BadInput, match=r"sandwich 30: _Drawer cannot draw images: model\(x=None, n=1\): Runtime"):
            _evaluated(fitted, sandwich=30)
        return
    found = _evaluated(fitted, sandwich=30).bidirectional_importance
    assert found is not None and found["num_images"] == 30
    assert abs(found["width"]["mean"]) < 1e-3 and found["width"]["se"] < 1e-3


def test_the_widths_in_a_comparison(elsewhere: Path) -> None:
    """Each in its own column, and only where it is known."""
    runs = [write("a", [-9.0], [-2.0]), write("b", [-9.5], [-2.0], guide="flow")]
    assert "width" not in str(Comparison(runs))
    for run, width in zip(runs, (0.25, 0.5), strict=True):
        directory = RunDirectory.open(run)
        summary = directory.read_json("evaluation.json")
        assert summary is not None
        of_width = {"mean": width, "se": 0.1}
        found = {"num_images": 1, "lower": of_width, "upper": of_width, "width": of_width, "num_samples": 10}
        found["wide"] = WIDE
        directory.write_json("evaluation.json", summary | {"sandwich_importance": found})
    comparison = Comparison(runs)
    assert [row.width_importance for row in comparison.rows] == [0.25, 0.5]
    assert [row.width_annealed for row in comparison.rows] == [None, None]
    assert " width " in str(comparison) and "0.250" in str(comparison) and "AIS width" not in str(comparison)
    assert "width: distance between the two bounds" in str(comparison)


def test_the_command_of_an_evaluation_with_bounds() -> None:
    """Annealing draws 100 images from the model unless told otherwise, and importance sampling none."""
    content = Evaluation.of({"importance": importance(-10, -12)}, "importance", ABOUT).summary
    for estimator, more, images, words in (
        ("importance", {}, 0, []),
        ("importance", {"sandwich_importance": _ENTRY}, 100, ["--sandwich", "100"]),
        ("annealed", {"sandwich": _ENTRY}, 100, []),
        ("annealed", {"sandwich": _ENTRY}, 50, ["--sandwich", "50"]),
    ):
        options = asdict(EvaluationOptions()) | {"estimator": estimator, "sandwich": images}
        command = bounds.section(content | more | {"options": options}, ["run"]).again.words
        assert [word for word in command if word in ("--sandwich", "50", "100")] == words
    assert EvaluationOptions(estimator="annealed").num_from_model == 100 and EvaluationOptions().num_from_model == 0


_ENTRY: dict[str, Any] = {
    "num_images": 100,
    "num_samples": 30,
    "lower": {"mean": -2.0, "se": 0.1},
    "upper": {"mean": -1.0, "se": 0.1},
    "width": {"mean": 1.0, "se": 0.1},
    "wide": WIDE,
}
