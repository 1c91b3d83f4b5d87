"""log p(x) of binary pixels by products, against one logarithm for each pixel in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppl_gen.networks.pixel_sums import log_of_product, log_prob_by_pixels, log_prob_of_binary

F64 = torch.float64


def _exact(value: Tensor, logits: Tensor) -> Tensor:
    """In float64, with no terms that cancel."""
    return -F.softplus((1 - 2 * value.double()) * logits.double(), threshold=1000).sum(-1)


def _case(pixels: int, scale: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(pixels)
    return torch.bernoulli(torch.rand(6, pixels)).to(dtype), (scale * torch.randn(5, 6, pixels, dtype=F64)).to(dtype)


@pytest.mark.parametrize("pixels", [1, 5, 8, 64, 83, 784])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("gradient", [False, True])
def test_any_number_of_pixels(pixels: int, scale: float, gradient: bool) -> None:
    value, logits = _case(pixels, scale)
    exact = _exact(value, logits)
    ours = log_prob_by_pixels(value, logits.requires_grad_(gradient)).detach().double()
    error = (ours - exact).abs()
    assert (error <= 6e-8 * pixels + 2e-7 * exact.abs()).all()
    if not gradient:
        assert (error <= 1e-5 * exact.abs()).all() and (error.median() <= 1e-6 * exact.abs().median())


def test_products_that_overflow() -> None:
    """They are -inf alone; the density has another formula for them, with the same gradient."""
    value, logits = torch.zeros(16), torch.full((2, 16), 12.0)
    logits[1] = -12.0
    assert log_prob_of_binary(value, logits).isinf().tolist() == [True, False]  # type: ignore[union-attr]
    torch.testing.assert_close(log_prob_by_pixels(value, logits), _exact(value, logits).float(), rtol=1e-6, atol=0)
    logits.requires_grad_()
    result = log_prob_by_pixels(value, logits)
    torch.testing.assert_close(result.double(), _exact(value, logits), rtol=1e-6, atol=1e-4)
    (slope,) = torch.autograd.grad(result.sum(), logits)
    torch.testing.assert_close(slope, value - logits.sigmoid())


def test_pixels_that_are_near_certain_keep_their_digits() -> None:
    value, logits = torch.ones(40), torch.full((3, 40), 14.0)
    exact = _exact(value, logits)
    assert (exact > -1e-4).all()
    torch.testing.assert_close(log_prob_by_pixels(value, logits).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [0.5, 8.0])
def test_gradients(scale: float) -> None:
    """The first is x - sigmoid(l), and it can be differentiated again."""
    value, logits = _case(19, scale, F64)
    logits.requires_grad_()
    weights = torch.rand(5, 6, dtype=F64)
    (slope,) = torch.autograd.grad(log_prob_by_pixels(value, logits), logits, weights)
    torch.testing.assert_close(slope, weights.unsqueeze(-1) * (value - logits.sigmoid()))
    assert torch.autograd.gradcheck(lambda each: log_prob_by_pixels(value, each), logits[:1].detach().requires_grad_())
    assert torch.autograd.gradgradcheck(
        lambda each: log_prob_by_pixels(value, each), logits[:1].detach().requires_grad_()
    )


def test_grey_values_and_values_with_a_gradient() -> None:
    value, logits = torch.rand(4, 9, dtype=F64, requires_grad=True), torch.randn(3, 4, 9, dtype=F64)
    assert log_prob_of_binary(value, logits) is None
    expected = (value * logits - F.softplus(logits)).sum(-1)
    torch.testing.assert_close(log_prob_by_pixels(value, logits), expected)
    binary = (value > 0.5).double().detach().requires_grad_()
    (slope,) = torch.autograd.grad(log_prob_by_pixels(binary, logits).sum(), binary)
    torch.testing.assert_close(slope, logits.sum(0))


def test_nan_stays() -> None:
    logits = torch.zeros(2, 16)
    logits[1, 3] = torch.nan
    for each in (logits, logits.clone().requires_grad_()):
        assert log_prob_by_pixels(torch.ones(16), each).isnan().tolist() == [False, True]


def test_factors_are_left_as_they_are() -> None:
    factors = 1 + torch.rand(3, 21, dtype=F64)
    before = factors.clone()
    torch.testing.assert_close(log_of_product(factors), factors.log().sum(-1))
    assert torch.equal(factors, before)
