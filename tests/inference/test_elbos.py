"""Bounds that Pyro computes."""

import pytest
import torch
from fits import small_config

from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble
from ppl_gen.inference.elbos import ScaleLatents, with_gradient_of
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair


@pytest.mark.parametrize("name", ["elbo", "elbo-analytic-kl"])
def test_warmup_scales_the_kl_term_alone(data: Data, name: str) -> None:
    model, guide = assemble(small_config(), data)
    x = data.targets("train")[:64]
    warmup = ScaleLatents()
    values = {}
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x[:8])
        elbo = bind(construct(name), pair, x[:8])
        for scale in (0.0, 0.5, 1.0):
            warmup.scale = scale
            torch.manual_seed(1)
            values[scale] = elbo.differentiable_loss(warmup(pair.model), warmup(pair.guide), x).item()
        torch.manual_seed(1)
        terms = pair.terms(x, analytic_kl=True)
    torch.manual_seed(1)
    kl = (terms.log_guide - terms.log_prior).sum().item() if name == "elbo" else terms.kl.sum().item()  # type: ignore[union-attr]
    assert values[1.0] - values[0.0] == pytest.approx(kl, rel=1e-3)
    assert values[0.5] - values[0.0] == pytest.approx(kl / 2, rel=1e-3)


def test_a_value_with_another_gradient_is_the_value_to_the_bit() -> None:
    value, path = torch.ones(1000), torch.rand(1000, requires_grad=True)
    through = with_gradient_of(value, path)
    assert torch.equal(through, value)
    assert torch.autograd.grad(through.sum(), path)[0].eq(1).all()
