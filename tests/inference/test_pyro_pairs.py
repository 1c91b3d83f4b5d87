"""Pairs of Pyro's examples and tutorials: their weights are those computed by hand."""

from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from pyro_pairs import PAIRS, Draws, M2Enumerated, Pair, double_precision
from torch import Tensor

import ppl_gen
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.importance import log_mean_weight_with_errors
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.pair import Pair as Read

SIGMAS = 5
"""Standard errors of a difference. A false alarm once in 1.7 million numbers; here are 110 of them."""


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    pyro.clear_param_store()
    torch.manual_seed(1)
    with double_precision():
        yield


@pytest.fixture(params=PAIRS)
def pair(request: Any) -> Pair:
    return PAIRS[request.param]()


def _drawn(pair: Pair, count: int) -> tuple[Any, dict[str, Tensor]]:
    """Terms of samples that Pyro draws, and the values of the latent sites."""
    read = Read.read(pair.model, pair.guide, pair.x, *pair.arguments, **pair.named)
    torch.manual_seed(2)
    terms = read.terms(pair.x, *pair.arguments, num_samples=count, **pair.named)
    if not read.enumerated_in_guide:
        return terms, terms.latents
    torch.manual_seed(2)
    return terms, read.by_value(count, Batch(pair.x, pair.arguments, pair.named)).values


def test_weights_at_the_same_draws(pair: Pair) -> None:
    with evaluating(pair):
        read = Read.read(pair.model, pair.guide, pair.x, *pair.arguments, **pair.named)
        if read.enumerated:
            found = ppl_gen.log_weights(pair.model, pair.guide, pair.x, *pair.arguments, num_samples=3, **pair.named)
            given = {}
        else:
            terms, given = _drawn(pair, 3)
            found = terms.log_weight
        torch.testing.assert_close(found, pair.weigh(Draws(3, given)), rtol=1e-9, atol=1e-9)


def test_log_px_is_that_of_draws_by_hand(pair: Pair) -> None:
    """The draws are independent: not only densities, but q itself is held."""
    args, count = (pair.model, pair.guide, pair.x, *pair.arguments), 1500
    found = ppl_gen.log_marginal_likelihood(*args, num_samples=count, ask_again=False, **pair.named)
    with evaluating(pair):
        value, variance, *_ = log_mean_weight_with_errors(pair.weigh(Draws(count)))
    error = (found.log_px_mc_var + variance).clamp(min=1e-20).sqrt()
    assert float(((found.log_px - value) / error).abs().max()) < SIGMAS
    assert float(error.max()) < 0.5  # else any number would be within it


def test_the_elbo_of_an_enumerating_guide() -> None:
    pair = M2Enumerated()
    with evaluating(pair):
        terms, given = _drawn(pair, 3)
        torch.testing.assert_close(terms.evidence, pair.evidence(Draws(3, given)), rtol=1e-9, atol=1e-9)
