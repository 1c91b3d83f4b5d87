"""Objectives as the loss of a pair."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import small_config
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair


def test_particles_average_the_elbo(data: Data) -> None:
    model, guide = assemble(small_config(), data)
    x = data.targets("train")[:64]
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x[:8])
        elbo = bind(construct("elbo", num_particles=2000), pair, x[:8])
        estimate = -elbo.differentiable_loss(pair.model, pair.guide, x) / 64
        terms = pair.terms(x, num_samples=2000)
        se = terms.log_weight.std(0).square().mean().sqrt() / math.sqrt(64 * 2000)
        # Both are estimates: the difference has twice the variance. 4 standard errors: false-alarm rate 6e-5.
        assert (estimate - terms.log_weight.mean()).abs() < 4 * math.sqrt(2) * se


def test_analytic_kl_is_refused_where_there_is_none(data: Data) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.StudentT(3.0, torch.zeros(3), torch.ones(3)).to_event(1))

    model, _ = assemble(small_config(), data)
    x = data.targets("train")[:8]
    with evaluating(model):
        pair = Pair.read(model, guide, x)
        assert isinstance(bind(construct("elbo"), pair, x), Trace_ELBO)
        with pytest.raises(BadInput, match="no closed-form KL"):
            bind(construct("elbo-analytic-kl"), pair, x)
