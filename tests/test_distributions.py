import itertools

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_gen.distributions import BernoulliVector


@settings(max_examples=60, deadline=None)
@given(
    pixels=st.integers(1, 9),
    batch=st.lists(st.integers(1, 4), max_size=2),
    samples=st.lists(st.integers(1, 3), max_size=2),
    scale=st.sampled_from([0.1, 3.0, 60.0, 1e4]),
    seed=st.integers(0, 2**32),
)
def test_is_a_vector_of_bernoullis(pixels: int, batch: list[int], samples: list[int], scale: float, seed: int) -> None:
    """Values and gradients to float64 precision, at every broadcast and for logits of any size."""
    torch.manual_seed(seed)
    logits = (torch.randn(*batch, pixels, dtype=torch.float64) * scale).requires_grad_()
    x = torch.bernoulli(torch.full((*samples, *batch, pixels), 0.5, dtype=torch.float64))
    ours, theirs = BernoulliVector(logits), dist.Bernoulli(logits=logits).to_event(1)
    assert ours.batch_shape == theirs.batch_shape and ours.event_shape == theirs.event_shape
    expected = theirs.log_prob(x)
    # Softplus rounds at the size of the logits.
    torch.testing.assert_close(ours.log_prob(x), expected, rtol=1e-12, atol=1e-15 * scale * pixels + 1e-13)
    wide = ours.expand(torch.Size([*samples, *batch]))
    torch.testing.assert_close(wide.log_prob(x), ours.log_prob(x), rtol=0, atol=0)
    gradients = [torch.autograd.grad(d.log_prob(x).sum(), logits)[0] for d in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
    assert ours.sample(torch.Size(samples)).shape == (*samples, *batch, pixels)


def test_sums_to_one() -> None:
    logits = torch.randn(3, 8, dtype=torch.float64) * 4
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)), dtype=torch.float64)
    total = BernoulliVector(logits).log_prob(x[:, None]).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_float32_is_stable() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 30.0]])
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    assert BernoulliVector(logits).log_prob(x).item() == pytest.approx(-0.6931472, rel=1e-6)


def test_sample_has_the_mean() -> None:
    """Within 5 standard errors of each of 6 pixels: false-alarm rate 4e-6."""
    distribution = BernoulliVector(torch.linspace(-3, 3, 6))
    draws = distribution.sample(torch.Size([40_000]))
    error = (draws.mean(0) - distribution.mean).abs()
    assert (error < 5 * (distribution.variance / 40_000).sqrt()).all()


def test_validation() -> None:
    with pytest.raises(ValueError, match="logits"):
        BernoulliVector(torch.tensor([float("nan")]), validate_args=True)
