"""Log-densities in another form than torch's are the same, with the same derivatives."""

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_gen.networks.log_density import is_normal_vector, log_density

F64 = torch.float64


@pytest.mark.parametrize(
    ("of_value", "of_loc", "of_scale"),
    [((4, 3), (4, 3), (4, 3)), ((5, 4, 3), (4, 3), (4, 3)), ((5, 4, 3), (3,), (3,)), ((3,), (4, 3), (1, 3))],
)
def test_normal_vectors(of_value: Any, of_loc: Any, of_scale: Any) -> None:
    """For any shapes that broadcast; and their gradients, of the first and second order."""
    torch.manual_seed(0)
    value, loc = torch.randn(of_value, dtype=F64), torch.randn(of_loc, dtype=F64)
    scale = 0.3 + torch.rand(of_scale, dtype=F64)
    arguments = [each.requires_grad_() for each in (value, loc, scale)]

    def ours(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        return log_density(dist.Normal(loc, scale, validate_args=False).to_event(1), value)

    theirs = dist.Normal(loc, scale).to_event(1).log_prob(value)
    torch.testing.assert_close(ours(*arguments), theirs)
    weights = torch.rand(theirs.shape, dtype=F64)
    for one, two in zip(
        torch.autograd.grad(ours(*arguments), arguments, weights),
        torch.autograd.grad(theirs, arguments, weights),
        strict=True,
    ):
        torch.testing.assert_close(one, two)
    assert torch.autograd.gradcheck(ours, arguments) and torch.autograd.gradgradcheck(ours, arguments)


def test_which_are_normal_vectors() -> None:
    normal = dist.Normal(torch.zeros(2, 3), 1.0)
    assert is_normal_vector(normal.to_event(1)) and is_normal_vector(normal.expand((4, 2, 3)).to_event(1))
    assert not any(map(is_normal_vector, (normal, normal.to_event(2), dist.Laplace(torch.zeros(3), 1.0).to_event(1))))


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("events", [0, 1, 2])
def test_stock_bernoulli(gradient: bool, events: int) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 4, 9, dtype=F64)).requires_grad_(gradient)
    stock = dist.Bernoulli(logits=logits, validate_args=False).to_event(events)
    x = torch.bernoulli(torch.rand(4, 9, dtype=F64))
    ours, theirs = log_density(stock, x), stock.log_prob(x)
    torch.testing.assert_close(ours, theirs)
    if gradient:
        slopes = [torch.autograd.grad(each.sum(), logits)[0] for each in (ours, theirs)]
        torch.testing.assert_close(*slopes)


def test_values_out_of_the_support_are_refused_with_checks_on() -> None:
    stock = dist.Normal(torch.zeros(3), 1.0, validate_args=True).to_event(1)
    with pytest.raises(ValueError, match="support"):
        log_density(stock, torch.tensor([0.0, torch.nan, 0.0]))
