"""Sums over all states of binary units, against the same sums written out."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_gen.networks import state_sums
from ppl_gen.networks.state_sums import binary_states, log_sum_over_states, softplus_over_states

F64 = torch.float64
SCALES = st.sampled_from([0.1, 3.0, 60.0, 1e4])


@pytest.mark.parametrize("units", [1, 3, 13, 14])
def test_states_are_all_binary_vectors(units: int) -> None:
    """In the order of their numbers, of which unit m is bit m, below and above the 12 bits that are made at once."""
    states = binary_states(units)
    assert states.shape == (2**units, units) and states.dtype == torch.float32
    expected = [bits[::-1] for bits in itertools.product([0.0, 1.0], repeat=units)]
    assert torch.equal(states, torch.tensor(expected))


@settings(max_examples=60)
@given(
    units=st.integers(1, 7),
    pixels=st.integers(1, 9),
    scale=SCALES,
    chunk=st.sampled_from([1, 200, 2**19]),
    seed=st.integers(0, 2**32),
)
def test_softplus(units: int, pixels: int, scale: float, chunk: int, seed: int) -> None:
    """Values and gradients, for any chunk of states."""
    torch.manual_seed(seed)
    weight = (torch.randn(units, pixels, dtype=F64) * scale).requires_grad_()
    bias = torch.randn(pixels, dtype=F64).requires_grad_()
    total = softplus_over_states(weight, bias, chunk)
    whole = F.softplus(binary_states(units, F64) @ weight + bias, threshold=40).sum(-1)
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)
    chunked, unchunked = (torch.autograd.grad(s.pow(2).sum(), (weight, bias)) for s in (total, whole))
    torch.testing.assert_close(chunked, unchunked, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "scale", "pixels", "folds"),
    [
        (F64, 1.0, 9, 2),
        (F64, 25.0, 16, 1),
        (F64, 80.0, 9, 0),
        (F64, 200.0, 16, None),
        (torch.float32, 1.0, 16, 2),
        (torch.float32, 5.0, 9, 1),
        (torch.float32, 5.0, 16, 0),
        (torch.float32, 30.0, 9, None),
    ],
)
def test_as_many_factors_as_cannot_overflow(
    dtype: torch.dtype, scale: float, pixels: int, folds: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The odds of four pixels are multiplied out, and several such products by each other, where all are sure to be
    finite; where they are not, logits are added. Relative to one float32 rounding of each term."""
    torch.manual_seed(0)
    weight, bias = torch.randn(6, pixels, dtype=dtype) * scale, torch.randn(pixels, dtype=dtype)
    weight.requires_grad_()
    used, find = [], state_sums._folds

    def noted(low: Tensor, high: Tensor) -> int | None:
        used.append(find(low, high))
        return used[0]

    monkeypatch.setattr(state_sums, "_folds", noted)
    total = softplus_over_states(weight, bias)
    assert used == [folds]
    truth = F.softplus(binary_states(6, F64) @ weight.double() + bias.double(), threshold=40).sum(-1)
    rtol = 1e-12 if dtype == F64 else 1e-6
    torch.testing.assert_close(total.double(), truth, rtol=rtol, atol=pixels * rtol)
    gradients = [torch.autograd.grad(s.sum(), weight)[0] for s in (total, truth)]
    torch.testing.assert_close(*gradients, rtol=10 * rtol, atol=10 * rtol)


def test_odds_that_cancel() -> None:
    """Low units that make a group of pixels impossible and high ones that make up for it: their odds, e^-88 and e^84,
    are 0 where a processor flushes what is below e^-87, and almost too large; nothing of e^-4 may be lost with them.
    Relative to one float32 rounding."""
    weight = torch.tensor([-22.0, 0.1, 21.0, -0.1]).unsqueeze(-1).expand(4, 8).clone().requires_grad_()
    truth = F.softplus(binary_states(4, F64) @ weight.double(), threshold=40).sum(-1)
    expected = torch.autograd.grad(truth.sum(), weight)[0]
    torch.set_flush_denormal(True)
    try:
        total = softplus_over_states(weight, torch.zeros(8))
        torch.testing.assert_close(total.double(), truth, rtol=1e-6, atol=0)
        torch.testing.assert_close(torch.autograd.grad(total.sum(), weight)[0], expected, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_flush_denormal(False)


@settings(max_examples=60)
@given(
    units=st.integers(1, 10),
    images=st.integers(1, 4),
    scale=SCALES,
    slope=SCALES,
    seed=st.integers(0, 2**32),
)
def test_log_sum(units: int, images: int, scale: float, slope: float, seed: int) -> None:
    """Values and gradients, for scores and evidence of any size: also where they cancel but for their noise."""
    torch.manual_seed(seed)
    evidence = torch.randn(units, images, dtype=F64) * slope
    scores = scale * torch.randn(2**units, dtype=F64) - binary_states(units, F64) @ evidence[:, 0]
    parts = (scores.requires_grad_(), evidence.requires_grad_())
    total = log_sum_over_states(*parts)
    whole = (scores.unsqueeze(-1) + binary_states(units, F64) @ evidence).logsumexp(0)
    size = 1e-15 * (scale + slope * units)
    torch.testing.assert_close(total, whole, rtol=1e-11, atol=1e-10 + 10 * size)
    ours, theirs = (torch.autograd.grad(each.sum(), parts) for each in (total, whole))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)
