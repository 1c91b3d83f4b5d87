"""`--num-samples auto` in an evaluation, and the options that settle more."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ppl_gen.core.errors import BadInput
from ppl_gen.data.options import DataOptions
from ppl_gen.evaluation import estimating
from ppl_gen.evaluation.estimating import evaluate
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment.config import Config
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.inference.refinement import TooMuchWork
from ppl_gen.inference.settling import Settling
from ppl_gen.run import Run


def _run(folder: Path, model: str, **options: Any) -> Fitted:
    training = TrainingOptions(epochs=1)
    how: dict[str, Any] = {"data": DataOptions("digits", train_size=200), "num_samples": 30, "training": training}
    return Fitted.open(Run.start(Config(model, **how, **options), out=folder / model, quiet=True).path)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return _run(tmp_path_factory.mktemp("runs"), "vae", model_options={"hidden_dims": (16,), "latent_dim": 5})


def test_the_number_of_samples_is_recorded_for_each_image(vae: Fitted) -> None:
    options = EvaluationOptions(num_images=6, num_samples="auto", settling=Settling(0.2, 512))
    evaluation = evaluate(vae, options, quiet=True)
    entry = evaluation.summary["log_px"]
    assert evaluation.primary == entry["estimator"] == "settled" and entry["tolerance"] == 0.2
    assert evaluation.options["num_samples"] == "auto" and evaluation.summary["log_px_importance"]["num_samples"] == 30
    ended = entry["settled"]
    assert sum(ended[f"fraction_{how}"] for how in ("left", "settled", "annealed")) == pytest.approx(1)
    assert entry["at_least"] == bool(ended["num_left"])
    images = evaluation.to_xarray()
    assert int(images["num_drawn_settled"].sum()) == ended["samples"]["total"]
    assert int(images["num_samples_settled"].max()) == ended["samples"]["largest"] <= 512
    assert "settled to 0.2 nats: " in str(evaluation)
    evaluation.write(vae.directory)
    read = Evaluation.read(vae.directory)
    assert read is not None and read.log_px.settings == {"tolerance": 0.2, "most_samples": 512}
    assert torch.equal(read.estimates["settled"].untrusted, torch.from_numpy(images["outcome_settled"].values == 0))
    assert read.estimates["settled"].at_least == entry["at_least"]
    again = evaluate(vae, options, quiet=True)
    assert again.log_px.mean == evaluation.log_px.mean


def test_what_is_not_settled_names_the_options_that_do_better(vae: Fitted, tmp_path: Path) -> None:
    """Of 20 images with 25 samples each some are not trusted: k-hat of so few has a low threshold."""
    few = EvaluationOptions(num_images=20, num_samples=25)
    evaluation = evaluate(vae, few, quiet=True)
    assert evaluation.log_px.at_least and evaluation.summary["next_options"] == "--num-samples auto"
    assert "python -m ppl_gen.evaluate RUN --num-samples auto" in str(evaluation)
    impossible = Settling(1e-6, 128)
    settled = evaluate(vae, replace(few, num_samples="auto", num_images=4, settling=impossible), quiet=True)
    assert settled.log_px.at_least and settled.summary["next_options"] == "--estimator annealed"
    assert "100.0% not" in str(settled)


@pytest.mark.parametrize("too_long", [True, False])
def test_refused_quadrature_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, too_long: bool) -> None:
    """But one that only takes longer than importance sampling is."""
    plane = _run(tmp_path, "vae", guide="normal", model_options={"latent_dim": 2, "hidden_dims": (4,)})

    def refused(*_: Any, **__: Any) -> None:
        raise TooMuchWork("VAE", 2e9, 1e9) if too_long else BadInput("the prior has no density")

    monkeypatch.setattr(estimating, "quadrature_log_px", refused)
    summary = evaluate(plane, EvaluationOptions(num_images=20, num_samples=25), quiet=True).summary
    why = r"it takes about \d+\.\d times the operations of importance sampling" if too_long else "has no density"
    assert re.search(why, summary["no_quadrature"])
    assert summary["next_options"] == ("--estimator quadrature" if too_long else "--num-samples auto")


def test_a_known_log_px_has_nothing_to_settle(tmp_path: Path) -> None:
    """The settled value stands beside it."""
    belief_net = _run(tmp_path, "belief-net", guide="bernoulli", model_options={"latent_dim": 3})
    evaluation = evaluate(belief_net, EvaluationOptions(num_images=8, num_samples="auto"), quiet=True)
    assert evaluation.primary == "exact" and "next_options" not in evaluation.summary
    settled = evaluation["log_px_settled"]
    assert abs(settled.mean - evaluation.log_px.mean) < 0.2
    images = evaluation.to_xarray()
    assert float(abs(images["log_px_settled"] - images["log_px_exact"]).max()) < 0.5


def test_what_auto_cannot_be_with(tmp_path: Path) -> None:
    """It is said before any work."""
    for more in ({"gaps": True}, {"prior_share": 0.1}, {"temperature": 2.0}, {"estimator": "annealed"}):
        with pytest.raises(BadInput, match="leave out"):
            EvaluationOptions(num_samples="auto", **more)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"settling.*needs"):
        EvaluationOptions(settling=Settling(0.5))
    mixture = _run(tmp_path, "mixture", guide="enumerated", model_options={"num_components": 3})
    with pytest.raises(BadInput, match="no importance samples are drawn"):
        evaluate(mixture, EvaluationOptions(num_samples="auto"), quiet=True)
