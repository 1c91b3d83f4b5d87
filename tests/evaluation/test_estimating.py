"""What an evaluation estimates and records, on fits of a second."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

from ppl_gen.core import memory
from ppl_gen.core.errors import BadInput
from ppl_gen.data.options import DataOptions
from ppl_gen.evaluation import reading
from ppl_gen.evaluation.estimating import evaluate, primary_of
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment.config import Config
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.inference.annealed import Annealing
from ppl_gen.inference.estimate import Estimate
from ppl_gen.inference.quadrature import Quadrature
from ppl_gen.inference.settling import Settling
from ppl_gen.run import Run

MODELS: dict[str, dict[str, Any]] = {
    "vae": {"model_options": {"hidden_dims": (16,), "latent_dim": 2}},
    "mixture": {"guide": "enumerated", "model_options": {"num_components": 3}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    how: dict[str, Any] = {"data": DataOptions("digits", train_size=200), "num_samples": 30}
    made = {}
    for name, options in MODELS.items():
        config = Config(name, training=TrainingOptions(epochs=1), **how, **options)
        made[name] = Run.start(config, out=folder / name, quiet=True).path
    return made


def _fitted(path: Path, to: Path) -> Fitted:
    return Fitted.open(shutil.copytree(path, to / path.name))


@pytest.mark.parametrize("estimator", ["importance", "quadrature"])
def test_many_images_give_the_same_numbers(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, estimator: Any
) -> None:
    """To the bit: with a limit of 7 images, all that is computed of each image lies in files. It is written in blocks,
    and read again."""
    options = EvaluationOptions(num_images=40, num_samples=30, estimator=estimator)
    fitted, found = _fitted(runs["vae"], tmp_path), []
    for limit in (memory.MANY_IMAGES, 7):
        monkeypatch.setattr(memory, "MANY_IMAGES", limit)
        found.append(evaluate(fitted, options, quiet=True))
    few, many = found
    assert {**few.to_json(), "seconds": 0} == {**many.to_json(), "seconds": 0}
    xarray.testing.assert_equal(few.to_xarray(), many.to_xarray())
    many.write(fitted.directory, most=7)
    ours = reading.read(fitted.directory.path)
    assert len(list(fitted.directory.path.glob("evaluation-*.nc"))) == 6
    np.testing.assert_array_equal(ours.log_px, few.to_xarray()["log_px"])
    np.testing.assert_array_equal(ours.elbo, few.to_xarray()["elbo"])


def _recorded(evaluation: Evaluation, fitted: Fitted) -> dict[str, Any]:
    """The content of the file that an evaluation is written to."""
    evaluation.write(fitted.directory)
    return json.loads((fitted.directory.path / "evaluation.json").read_text(encoding="utf-8"))


def _untimed(content: dict[str, Any]) -> dict[str, Any]:
    """The same without seconds, which differ between any two evaluations."""
    kept = {key: value for key, value in content.items() if key != "seconds"}
    return {key: _untimed(value) if isinstance(value, dict) else value for key, value in kept.items()}


def test_every_option_is_recorded_as_it_was_resolved(runs: dict[str, Path], tmp_path: Path) -> None:
    """So that the evaluation can be made again from its record alone."""
    fitted = _fitted(runs["vae"], tmp_path)
    annealing = Annealing(num_temperatures=3, num_chains=2, leapfrog_steps=2)
    annealed = EvaluationOptions(num_images=6, estimator="annealed", annealed=annealing, sandwich=3, seed=5)
    mixed = EvaluationOptions(num_images=6, prior_share=0.5, num_samples=40, proposals=(runs["vae"],))
    settled = EvaluationOptions(num_images=6, estimator="importance", num_samples="auto", settling=Settling(0.5))
    for options, others in ((EvaluationOptions(), ()), (annealed, ()), (settled, ()), (mixed, (fitted.guide,))):
        evaluation = evaluate(fitted, options, others=others, quiet=True)
        said = _recorded(evaluation, fitted)["options"]
        assert said == evaluation.options == json.loads(json.dumps(evaluation.options))
        assert said["num_samples"] == (options.num_samples or 30)
        assert said["estimator"] != "auto" or options.mixes
        assert said["num_images"] == (options.num_images or len(fitted.data.test))
        again = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
        again["annealed"], again["quadrature"] = Annealing(**again["annealed"]), Quadrature(**again["quadrature"])
        again["settling"] = Settling(**again["settling"])
        again["proposals"] = tuple(map(Path, again["proposals"]))
        repeated = evaluate(fitted, EvaluationOptions(**again), others=others, quiet=True)
        assert _untimed(repeated.summary) == _untimed(evaluation.summary)
    assert evaluation.options["proposals"] == [str(runs["vae"])]


def test_the_evaluation_of_a_fit_records_its_options(runs: dict[str, Path]) -> None:
    said = json.loads((runs["mixture"] / "evaluation.json").read_text(encoding="utf-8"))["options"]
    assert said["estimator"] == "exact" and said["num_samples"] == 30 and said["split"] == "test"


def _mine(model: Any, guide: Any, x: torch.Tensor) -> Estimate:
    """An estimator of one's own: log p(x) of every image is -60 ± 0.01."""
    one = torch.ones(len(x), dtype=torch.float64)
    values = {"log_px": -60 * one, "log_px_mc_var": 1e-4 * one, "log_px_bias": 0 * one}
    return Estimate(estimator="mine", words="my own estimator", num_samples=7, settings={"depth": 3}, **values)


def test_an_estimator_of_ones_own_stands_beside_the_others(runs: dict[str, Path], tmp_path: Path) -> None:
    """It is written, judged and printed like those of the package, on disk too; no other module knows it."""
    fitted = _fitted(runs["vae"], tmp_path)
    evaluation = evaluate(fitted, EvaluationOptions(num_images=6), own=[_mine], quiet=True)
    entry = _recorded(evaluation, fitted)["log_px_mine"]
    assert entry["mean"] == -60 and entry["at_least"] and entry["depth"] == 3 and entry["num_samples"] == 7
    assert "importance" in evaluation.summary["below"]["mine"]
    assert "at least   -60.00 ± 0.00   mine, S = 7; Monte Carlo error" in str(evaluation)
    assert "mine is too low: " in str(evaluation)
    read = Evaluation.read(fitted.directory)
    assert read is not None and read.estimates["mine"].words == "my own estimator"
    title = read.to_xarray()["log_px_mine"].attrs["long_name"]
    assert title == "log p(x) by my own estimator"
    with pytest.raises(BadInput, match="two estimators have this name"):
        evaluate(fitted, EvaluationOptions(num_images=6), own=[_mine, _mine], quiet=True)

    def taken(*arguments: Any) -> Estimate:
        return replace(_mine(*arguments), estimator="annealed")

    with pytest.raises(BadInput, match="a name of the package"):
        evaluate(fitted, EvaluationOptions(num_images=6), own=[taken], quiet=True)


def test_samples_of_the_prior_beside_an_exact_value(runs: dict[str, Path], tmp_path: Path) -> None:
    fitted = _fitted(runs["mixture"], tmp_path)
    evaluation = evaluate(fitted, EvaluationOptions(num_images=20, estimator="prior"), quiet=True)
    assert evaluation.primary == "prior" and list(evaluation.estimates) == ["prior", "exact"]
    assert evaluation["log_px_exact"].mean == evaluation.elbo.mean


def test_which_estimate_is_the_evaluations_own() -> None:
    one = torch.ones(2)
    every = {
        name: Estimate(estimator=name, log_px=one, log_px_mc_var=one, log_px_bias=one)
        for name in ("exact", "importance", "mixed", "prior", "annealed")
    }
    by_grid = replace(every["exact"], estimator="quadrature")
    without = {key: each for key, each in every.items() if key != "exact"}
    for asked, primary in (("auto", "exact"), ("exact", "exact"), ("importance", "mixed"), ("annealed", "annealed")):
        assert primary_of(every, asked) == primary
    assert primary_of({**every, "quadrature": by_grid}, "quadrature") == "quadrature"
    assert primary_of({**every, "quadrature": by_grid}, "auto") == "exact"
    assert primary_of({**without, "quadrature": by_grid}, "auto") == "quadrature"
    assert (
        primary_of(without, "auto") == "mixed"
        and primary_of({"importance": every["importance"]}, "auto") == "importance"
    )
    assert primary_of({"exact": every["exact"]}, "importance") == "exact"


def test_options_as_json_has_them() -> None:
    options = EvaluationOptions(proposals=(Path("a"), Path("b")), proposal_guides=("x.py:X",))
    plain = options.to_json()
    assert plain == json.loads(json.dumps(plain))
    assert plain["proposals"] == ["a", "b"] and plain["annealed"]["num_chains"] == 16
    assert replace(options, seed=3).to_json() | {"seed": 0} == plain


@pytest.mark.parametrize("estimator", ["importance", "prior", "annealed"])
def test_products_are_of_full_float32(runs: dict[str, Path], tmp_path: Path, estimator: str) -> None:
    """Whatever is set outside, which is as it was afterwards."""
    fitted: Any = _fitted(runs["vae"], tmp_path)
    seen = set()

    def note(decoder: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        if arguments[0].dim() > 2 and len(arguments[0]) >= 10:  # samples or chains, and not what the pair is read by
            seen.add(torch.get_float32_matmul_precision())

    fitted.model.decoder.register_forward_pre_hook(note)
    more: dict[str, Any] = {"annealed": Annealing(num_temperatures=3, leapfrog_steps=2)}
    options = EvaluationOptions(num_images=3, estimator=estimator, **(more if estimator == "annealed" else {}))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        evaluate(fitted, options, quiet=True)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == {"highest"}
