"""The two gaps as a run records them, and as a person reads them."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from estimates import ONE, low
from fits import PLAIN

from ppl_gen import evaluate, fit
from ppl_gen.evaluation.gap_split import gap_parts, gap_rows, split_gap
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.inference.annealed import Annealing
from ppl_gen.inference.gaps import Gaps, Search

Call = Callable[..., tuple[int, str, str]]


def test_a_missed_mode_stands_below_the_gaps() -> None:
    some = ONE.bool()
    found = Gaps(
        low(-10.0, estimator="importance", doubted=some),
        elbo=-12 * ONE,
        best_elbo=-11 * ONE,
        elbo_mc_var=1e-4 * ONE,
        best_elbo_mc_var=1e-4 * ONE,
        settled=some,
        missed=torch.arange(20) < 5,
        blind=torch.arange(20) < 2,
    )
    part = gap_parts(found)
    assert part["fraction_missed"] == 0.25 and part["fraction_blind"] == 0.1 and part["at_least"]
    said = [row.label for _, rows in gap_rows({"contexts": part}) for row in rows]
    assert "25% of images have a mode that the search did not reach;" in said
    assert "blind to other modes than the encoder's: 10% of images" in said
    earlier = {key: value for key, value in part.items() if not key.startswith(("fraction_missed", "fraction_blind"))}
    assert len(gap_rows({"contexts": earlier})[0][1]) == len(said) - 3


def test_gaps_that_cannot_be_split(elsewhere: Path, call: Call) -> None:
    net = ("belief-net", "--guide", "bernoulli", "--latent-dim", "3", *PLAIN, "--binarization", "static")
    assert call(fit.command, *net, "--out", "net")[0] == 0
    status, _, err = call(evaluate.command, "net", "--gaps")
    assert status == 2 and "can be reparametrized" in err and err.count("\n") == 1
    status, _, err = call(fit.command, "--init-from", "net", "--refit-guide", "enumerated", "--out", "other")
    assert status == 2 and "neither the model nor the guide has a parameter to train" in err


FEW = Search(window=3, patience=1, most_windows=4)


def test_gaps_of_a_run(finished: Path) -> None:
    """The two parts are the whole, image by image, and are printed; a log p(x) by annealing takes its place where it is
    the larger."""
    options = EvaluationOptions(num_images=5, num_samples=50)
    split = split_gap(Fitted.open(finished), options, search=FEW, quiet=True)
    assert "approximation gap" in str(split) and "amortization gap" in str(split)
    found = split.summary["contexts"]
    whole = found["log_px"]["mean"] - found["elbo"]["mean"]
    assert found["approximation"]["mean"] + found["amortization"]["mean"] == pytest.approx(whole)
    assert len(found["per_image"]["elbo"]) == found["num_images"] == 5
    assert split.summary["search"] == asdict(FEW)
    annealing = Annealing(num_temperatures=60, start="guide")
    options = replace(options, estimator="annealed", annealed=annealing)
    larger = split_gap(Fitted.open(finished), options, search=FEW, quiet=True)
    of_log_px = {"importance": "importance sampling", "annealed": "annealed"}[larger.summary["contexts"]["estimator"]]
    assert f"log p(x), {of_log_px}" in str(larger)
    assert larger.summary["annealed"]["num_temperatures"] == 60
    assert larger.summary["contexts"]["log_px"]["mean"] >= found["log_px"]["mean"]


def test_gaps_of_a_flow(elsewhere: Path, finished: Path, call: Call) -> None:
    """Whose posterior has weights of its own: copies of it are fitted to the first images."""
    assert call(fit.command, "--init-from", finished, "--guide", "flow", *PLAIN[2:], "--out", "flow")[0] == 0
    options = EvaluationOptions(num_images=5, num_samples=50, gap_copies=2)
    parts = split_gap(Fitted.open("flow"), options, search=FEW, quiet=True).summary
    assert parts["copies"]["num_images"] == parts["contexts_of_these"]["num_images"] == 2
    assert parts["contexts_of_these"]["per_image"]["elbo"] == parts["contexts"]["per_image"]["elbo"][:2]
