"""Pairs in which images are not apart from each other, and what looks like it."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.pair import Pair

DECODER = nn.Linear(2, 6)


class _Pair(nn.Module):
    """z of two units, six binary pixels; what a subclass replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2, track_running_stats=False)

    def prior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def likelihood(self, z: Tensor, x: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=DECODER(z)).to_event(1)

    def posterior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(x[:, :2], 1.0).to_event(1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", self.likelihood(z, x), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", self.posterior(x))


class EventOfAll(_Pair):
    def likelihood(self, z: Tensor, x: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=DECODER(z)).to_event(2)


class PriorOfAll(_Pair):
    def prior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(x[:, :2] - x[:, :2].mean(0), 1.0).to_event(1)


class BatchNormGuide(_Pair):
    def posterior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(self.norm(x[:, :2]), 1.0).to_event(1)


class FunctionalBatchNorm(_Pair):
    def posterior(self, x: Tensor) -> dist.Distribution:
        padded = torch.cat([x[:, :2], torch.ones(1, 2)])  # so that one image alone does not fail
        normed = nn.functional.batch_norm(padded, None, None, training=True)[:-1]
        return dist.Normal(normed, 1.0).to_event(1)


class MeanOfZ(_Pair):
    def likelihood(self, z: Tensor, x: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=DECODER(z - 0.1 * z.mean(-2, keepdim=True))).to_event(1)


class Neighbour(_Pair):
    """Each image is explained by the z of the one before."""

    def likelihood(self, z: Tensor, x: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=DECODER(z.roll(1, -2))).to_event(1)


class Attention(_Pair):
    def posterior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal((x @ x.T).softmax(-1) @ x[:, :2], 1.0).to_event(1)


class Position(_Pair):
    """Something for each row, whichever image stands there."""

    def posterior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(torch.arange(2.0 * len(x)).reshape(len(x), 2), 1.0).to_event(1)


class Size(_Pair):
    def posterior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(x[:, :2], float(len(x))).to_event(1)


class Ranks(_Pair):
    def posterior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(x[:, :2].argsort(0).float(), 1.0).to_event(1)


DEPENDENT = [EventOfAll, PriorOfAll, FunctionalBatchNorm, MeanOfZ, Neighbour, Attention, Position, Size, Ranks]


@pytest.mark.parametrize("kind", DEPENDENT)
def test_images_that_change_each_other(kind: type[_Pair]) -> None:
    x = torch.bernoulli(torch.full((40, 6), 0.5))
    x[:3] = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 1, 0, 1]])
    pair = kind()
    with pytest.raises(BadInput, match=r"images change each other's densities: .* alone and .* among 16"):
        ppl_gen.log_marginal_likelihood(pair, pair, x, num_samples=10)


class Largest(_Pair):
    """A statistic that the first images share."""

    def posterior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(x[:, :2] / x.sum(1).max(), 1.0).to_event(1)


class ManyOnly(_Pair):
    """Only where there are many."""

    def posterior(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(x[:, :2] + (x.mean() if len(x) > 6 else 0.0), 1.0).to_event(1)


class Noisy(_Pair):
    """With a noise besides z."""

    def likelihood(self, z: Tensor, x: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=DECODER(z) + x.mean() + 0.01 * torch.randn(())).to_event(1)


class Counting(_Pair):
    calls = 0.0

    def likelihood(self, z: Tensor, x: Tensor) -> dist.Distribution:
        self.calls += 0.1
        return dist.Bernoulli(logits=DECODER(z) + self.calls).to_event(1)


class Redrawn(_Pair):
    def model(self, x: Tensor) -> None:
        super().model(torch.bernoulli(0.8 * x))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Largest, "alone and"),
        (ManyOnly, "alone and"),
        (Noisy, "in another batch"),
        (Counting, "keep no state between calls"),
        (Redrawn, "observes different values at every call"),
    ],
)
def test_company_that_is_harder_to_see(kind: type[_Pair], words: str) -> None:
    x = torch.bernoulli(torch.full((40, 6), 0.3))
    x[:3], x[20:] = torch.tensor([0.0, 1, 0, 0, 1, 0]), 1.0
    pair = kind()
    with pytest.raises(BadInput, match=words):
        ppl_gen.log_marginal_likelihood(pair, pair, x, num_samples=10)


def test_a_statistic_of_one_image() -> None:
    pair = BatchNormGuide()
    with pytest.raises(BadInput, match=r"fail on one image alone: .*Expected more than 1 value per channel"):
        ppl_gen.log_marginal_likelihood(pair, pair, torch.randn(40, 6), num_samples=10)


def test_images_that_do_not() -> None:
    """The number of an image among others is its number alone, for the same noise."""
    pair = _Pair()
    x = torch.bernoulli(torch.full((17, 6), 0.5))
    assert ppl_gen.log_weights(pair, pair, x, num_samples=10).isfinite().all()


def test_noise_in_a_guide_besides_z() -> None:
    """log p(x, z) - log q(z | x, noise) is a weight, too: the mean over noise and z is p(x). N(0, 2), 5 images, each
    within 4 errors (false alarms 3e-4)."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 0.2 * torch.randn_like(x), 0.8))

    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    found = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=20_000)
    off = (found.log_px - dist.Normal(0.0, 2**0.5).log_prob(x)).abs()
    assert bool((off < 4 * found.log_px_mc_var.sqrt() + found.log_px_bias.abs()).all()) and bool((off < 0.05).all())


def test_densities_in_double_precision_of_a_net_in_single() -> None:
    """Products of float32 differ by the size of the batch: that is rounding, in whatever precision it is added up."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(784, 3), nn.Linear(3, 784)

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(encoder(x.float()), 0.5).to_event(1))

    assert ppl_gen.log_weights(model, guide, torch.rand(40, 784).double(), num_samples=3).isfinite().all()


def test_sites_that_differ_by_batch() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            for step in range(int(x.max())):
                z = pyro.sample(f"z_{step}", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            for step in range(int(x.max())):
                pyro.sample(f"z_{step}", dist.Normal(0 * x, 1.0))

    with pytest.raises(BadInput, match="sites must be the same for every batch"):
        ppl_gen.log_weights(model, guide, torch.tensor([1.0, 3.0, 2.0, 3.0]), num_samples=2)


def test_rounding_of_a_tight_guide_is_no_dependence() -> None:
    """With a scale of 1e-9, the rounding of a mean, which a batch of another size changes, is many scales."""

    class Tight(_Pair):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 2))

        def posterior(self, x: Tensor) -> dist.Distribution:
            return dist.Normal(self.net(x), 1e-9).to_event(1)

    class TightAndNormalized(Tight):
        def posterior(self, x: Tensor) -> dist.Distribution:
            return dist.Normal(self.norm(self.net(x)), 1e-9).to_event(1)

    x = torch.bernoulli(torch.full((40, 6), 0.5))
    pair = Tight()
    Pair.read(pair.model, pair.guide, x)
    with pytest.raises(BadInput, match="rounding to float32 changes a log weight"):
        ppl_gen.log_marginal_likelihood(pair.model, pair.guide, x, num_samples=5)
    pair = TightAndNormalized()
    with pytest.raises(BadInput, match=r"images change each other's densities|fail on one image alone"):
        ppl_gen.log_marginal_likelihood(pair.model, pair.guide, x, num_samples=5)


@pytest.mark.parametrize("shared", [True, False])
def test_noise_that_all_images_share_is_refused(shared: bool) -> None:
    """Noise of each image is a part of p(x | z), and is averaged over samples; that of a call is not."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            noise = torch.randn(()) if shared else torch.randn_like(z)
            pyro.sample("x", dist.Normal(z + noise, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    x = torch.linspace(-2, 2, 8)
    if shared:
        with pytest.raises(BadInput, match="model draws noise beside z once for all images, which samples would share"):
            ppl_gen.log_marginal_likelihood(model, guide, x)
    else:
        found = ppl_gen.log_marginal_likelihood(model, guide, x)
        truth = dist.Normal(0.0, 3**0.5).log_prob(x)
        assert ((found.log_px - truth).abs() < 6 * found.log_px_mc_var.sqrt()).all()


def _with_spikes(rate: float, shared: bool = False) -> Any:
    """z ~ N(0, 1) and x ~ N(z + u / 2, 1), with noise u beside z that is 1 with a given probability."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            u = torch.bernoulli(torch.full(() if shared else (len(x),), rate, dtype=x.dtype))
            pyro.sample("x", dist.Normal(z + 0.5 * u, 1.0), obs=x)

    return model


def _near(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_noise_that_is_often_equal_by_chance(count: int, rate: float) -> None:
    """It is seen with every seed: 90 readings miss any with a probability below 2e-3, which is that of the noise that
    images share, by 16 equal draws."""
    x = torch.linspace(-1, 2, count, dtype=torch.float64)
    for seed in range(10):
        pyro.set_rng_seed(seed)
        pair = Pair.read(_with_spikes(rate), _near, x)
        assert pair.noisy and not pair.vectorized
        if rate == 0.5:
            with pytest.raises(BadInput, match="model draws noise beside z once for all images"):
                Pair.read(_with_spikes(rate, shared=True), _near, x)


def test_weights_with_spikes_are_those_of_a_mixture() -> None:
    """log p(x) = log sum_u p(u) N(x; u / 2, 2), of 6 images with 10 seeds each. The sum of 60 squared errors, in units
    of their Monte Carlo error, is below 107 for chi-squared (false alarms 2e-4)."""
    x, squares = torch.tensor([-1.5, -0.5, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64), 0.0
    parts = [dist.Normal(0.5 * u, 2**0.5).log_prob(x) + math.log(p) for u, p in ((0, 0.9), (1, 0.1))]
    for seed in range(10):
        pyro.set_rng_seed(seed)
        found = ppl_gen.log_marginal_likelihood(_with_spikes(0.1), _near, x, num_samples=2000)
        errors = found.log_px - torch.stack(parts).logsumexp(0)
        squares += float((errors.square() / found.log_px_mc_var).sum())
    assert squares < 107


def _rare(draw: Callable[[], float]) -> Any:
    """Binary x, with p(1) = 0.9 in 5 % of all calls and 0.2 in the others."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Bernoulli(0.9 if draw() < 0.05 else 0.2), obs=x)

    return model


@pytest.mark.parametrize(
    "draw",
    [lambda: float(torch.rand(())), random.random, lambda: float(np.random.rand())],
    ids=["torch", "random", "numpy"],
)
def test_noise_that_all_images_share_and_that_is_rare(draw: Callable[[], float]) -> None:
    """In one call of 20: 64 calls do not show it with a probability of 4 %, and the seeds are fixed."""
    x = torch.tensor([0.0, 1.0] * 20)
    for seed in range(5):
        pyro.set_rng_seed(seed)
        with pytest.raises(BadInput, match=r"draws noise beside z once for all images|draw all noise with torch"):
            ppl_gen.log_marginal_likelihood(_rare(draw), lambda x: _near(x), x, num_samples=10)


def test_noise_of_some_images_alone() -> None:
    """Drawn if a bright image is in the batch, which is none of those that the pair is read on."""
    x = torch.zeros(300, 6)
    x[[7, 101]] = 1.0

    def model(x: Tensor) -> None:
        bright = x.sum(-1) >= 5
        noise = torch.where(bright, torch.randn(()), 0.0) if bright.any() else torch.zeros(len(x))
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=DECODER(z) + noise[:, None]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    with pytest.raises(BadInput, match="draws noise beside z for some images alone"):
        ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=5)


def test_numbers_that_are_drawn_and_not_used() -> None:
    """The first value of a parameter is drawn at every call, and used once: no density depends on it."""

    def model(x: Tensor) -> None:
        weight = pyro.param("weight", torch.randn(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)

    pair = Pair.read(model, _near, torch.linspace(-1, 2, 6))
    assert pair.vectorized and not pair.noisy


def test_a_sum_over_z_with_noise_is_refused() -> None:
    """The sum would be of one draw of the noise."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(2 * z + torch.randn(len(x)), 1.0), obs=x)

    with pytest.raises(BadInput, match=r"model draws noise beside z, so that a sum over z is not log p\(x\)"):
        ppl_gen.log_marginal_likelihood(model, lambda x: None, torch.linspace(-1, 2, 6))


@pytest.mark.parametrize("who", ["model", "guide"])
def test_one_bright_image_of_many(who: str) -> None:
    """It changes the densities of its batch, and is not among those that a pair is read on."""
    x = torch.rand(800, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def bright(x: Tensor, of: str) -> float:
        return 0.1 * bool((x > 3).any()) if who == of else 0.0

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0 + bright(x, "model")).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7 + bright(x, "guide")).to_event(1))

    ppl_gen.log_weights(model, guide, x, num_samples=2)
    x[633] = 5.0
    with pytest.raises(BadInput, match=f"{who}: images change each other's densities: .* among 300"):
        ppl_gen.log_weights(model, guide, x, num_samples=2)
