"""Plates as people write them: without a size, subsampled, in other dimensions, nested."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.pair import Pair

F64 = torch.float64
ZERO, ONE = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
PIXELS = 3
SIGMAS = 5
"""Standard errors; a false alarm once in 1.7 million numbers."""


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, PIXELS, generator=torch.Generator().manual_seed(5), dtype=F64)


def _gaussian(x: Tensor, shared: float = 1.0, own: float = 1.0) -> Tensor:
    """log p(x) if the pixels of an image share a variance and have one of their own."""
    covariance = own * torch.eye(x.shape[1], dtype=F64) + shared
    return dist.MultivariateNormal(torch.zeros(x.shape[1], dtype=F64), covariance).log_prob(x)


Plates = Callable[[Tensor], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]
"""The plates of images and of pixels; pixels are in the dimension -1, and images in another."""

PLATES: dict[str, Plates] = {
    "images at -2": lambda x: (pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", PIXELS, dim=-1)),
    "images at -3": lambda x: (pyro.plate("data", len(x), dim=-3), pyro.plate("pixels", PIXELS, dim=-1)),
    "no size": lambda x: (pyro.plate("data", dim=-2), pyro.plate("pixels", PIXELS, dim=-1)),
    "subsample size": lambda x: (pyro.plate("data", len(x), 6, dim=-2), pyro.plate("pixels", PIXELS, dim=-1)),
    "subsample": lambda x: (pyro.plate("data", len(x), subsample=x, dim=-2), pyro.plate("pixels", PIXELS, dim=-1)),
    "part of a data set": lambda x: (
        pyro.plate("data", 1000, len(x), dim=-2),
        pyro.plate("pixels", PIXELS, dim=-1),
    ),
}


@pytest.mark.parametrize("name", PLATES)
def test_log_px_is_that_of_a_gaussian(x: Tensor, name: str) -> None:
    """z of an image and w of a pixel, x ~ N(z + w, 1): pixels share the variance of z."""
    plates = PLATES[name]
    middle = (lambda v: v.unsqueeze(1)) if name == "images at -3" else (lambda v: v)

    def model(x: Tensor) -> None:
        images, pixels = plates(x)
        with images:
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            with pixels:
                w = pyro.sample("w", dist.Normal(ZERO, 1.0))
                pyro.sample("x", dist.Normal(z + w, 1.0), obs=middle(x))

    def guide(x: Tensor) -> None:
        images, pixels = plates(x)
        with images:
            z = pyro.sample("z", dist.Normal(0.6 * middle(x).mean(-1, keepdim=True), 1.0))
            with pixels:
                pyro.sample("w", dist.Normal(0.5 * (middle(x) - z), 1.0))

    pair = Pair.read(model, guide, x)
    assert pair.vectorized and pair.plate.name == "data" and pair.max_plate_nesting == (3 if "-3" in name else 2)
    with torch.no_grad():
        torch.manual_seed(0)
        terms = pair.terms(x, num_samples=4)
    z, w = terms.latents["z"], terms.latents["w"]
    assert z.shape == (4, 6, 1) and w.shape == (4, 6, PIXELS)
    normal = torch.distributions.Normal
    expected = (normal(z + w, ONE).log_prob(x) + normal(ZERO, ONE).log_prob(w)).sum(-1)
    expected = expected - normal(0.5 * (x - z), ONE).log_prob(w).sum(-1)
    prior, q = normal(ZERO, ONE).log_prob(z), normal(0.6 * x.mean(-1, keepdim=True), ONE).log_prob(z)
    torch.testing.assert_close(terms.log_weight, expected + (prior - q)[..., 0], rtol=1e-12, atol=1e-12)
    estimate = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=2000, ask_again=False)
    error = (estimate.log_px - _gaussian(x, own=2.0)) / estimate.log_px_mc_var.sqrt()
    assert float(error.abs().max()) < SIGMAS and float(estimate.log_px_mc_var.max()) < 0.01


def test_three_nested_plates(x: Tensor) -> None:
    """Images outside, colours and pixels inside, each with a latent of its own; images are in the middle dimension."""
    x = torch.stack([x, x.flip(0)], 0)  # [colours, images, pixels]

    def sites(x: Tensor, guide: bool) -> None:
        colours = pyro.plate("colours", 2, dim=-3)
        images, pixels = pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", PIXELS, dim=-1)
        x = x.movedim(0, 1)
        with images:
            loc = 0.5 * x.mean((0, 2)).unsqueeze(-1) if guide else ZERO
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            with colours:
                loc = 0.5 * (x.mean(2, keepdim=True) - z) if guide else ZERO
                c = pyro.sample("c", dist.Normal(loc, 1.0))
                with pixels:
                    if not guide:
                        pyro.sample("x", dist.Normal(z + c, 1.0), obs=x)

    first = x.movedim(1, 0)
    args = (lambda x: sites(x, False), lambda x: sites(x, True), first)
    estimate = ppl_gen.log_marginal_likelihood(*args, num_samples=3000, ask_again=False)
    block = torch.ones(PIXELS, PIXELS, dtype=F64)
    covariance = torch.eye(6, dtype=F64) + 1 + torch.block_diag(block, block)
    exact = dist.MultivariateNormal(torch.zeros(6, dtype=F64), covariance).log_prob(first.flatten(1))
    error = (estimate.log_px - exact) / estimate.log_px_mc_var.sqrt()
    assert float(error.abs().max()) < SIGMAS and float(estimate.log_px_mc_var.max()) < 0.02


def _crossed(x: Tensor, sampled: bool, joint: bool) -> None:
    """Bits r of rows and c of columns, and images [2, 3] of both if `joint`, else of rows and of columns apart."""
    rows, columns = pyro.plate("rows", 2, dim=-3), pyro.plate("columns", 3, dim=-2)
    half, parallel = torch.tensor(0.3, dtype=F64), {"enumerate": "parallel"}
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(ZERO, 1.0)) if sampled else ZERO
        with rows:
            r = pyro.sample("r", dist.Bernoulli(half), infer=parallel)
        with columns:
            c = pyro.sample("c", dist.Bernoulli(half), infer=parallel)
        images = x.reshape(-1, 2, 3).permute(1, 2, 0)
        if joint:
            with rows, columns:
                pyro.sample("x", dist.Normal(a + r + 2 * c, 1.0), obs=images)
        else:
            with rows:
                pyro.sample("x", dist.Normal(a + r, 1.0), obs=images[:, :1])
            with columns:
                pyro.sample("y", dist.Normal(a + 2 * c, 1.0), obs=images[0])


@pytest.mark.parametrize("sampled", [False, True])
def test_crossed_plates(sampled: bool) -> None:
    """Plates beside each other are summed over by themselves. Crossed ones are no product of such sums: refused."""
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=F64)

    def guide(x: Tensor, joint: bool) -> None:
        if sampled:
            with pyro.plate("data", len(x)):
                pyro.sample("a", dist.Normal(0.3 * x.mean(-1), 0.8))

    def model(x: Tensor, joint: bool) -> None:
        _crossed(x, sampled, joint)

    with pytest.raises(BadInput, match="a plate that is not around both"):
        ppl_gen.log_marginal_likelihood(model, guide, x, True, num_samples=10)

    def given(a: Tensor) -> Tensor:
        """log p(x | a) [points, images]."""
        normal = torch.distributions.Normal
        bit = torch.tensor([0.0, 1.0], dtype=F64)
        weights = torch.tensor([0.7, 0.3], dtype=F64).log()
        images = x.reshape(-1, 2, 3)
        seen = ((images[:, :, 0], bit), (images[:, 0], 2 * bit))
        each = (normal(a[:, None, None, None] + b, ONE).log_prob(part[None, ..., None]) + weights for part, b in seen)
        return torch.stack([part.logsumexp(-1).sum(-1) for part in each]).sum(0)

    estimate = ppl_gen.log_marginal_likelihood(model, guide, x, False, num_samples=4000, ask_again=False)
    if not sampled:
        torch.testing.assert_close(estimate.log_px, given(ZERO[None])[0], rtol=1e-12, atol=1e-12)
        return
    a = torch.linspace(-8, 8, 2001, dtype=F64)
    exact = (given(a) + torch.distributions.Normal(ZERO, ONE).log_prob(a)[:, None] + math.log(0.008)).logsumexp(0)
    error = (estimate.log_px - exact) / estimate.log_px_mc_var.sqrt()
    assert float(error.abs().max()) < SIGMAS and float(estimate.log_px_mc_var.max()) < 0.01


def test_training_takes_all_images_of_a_subsampled_plate(x: Tensor) -> None:
    """`subsample_size` of the size of the batch leaves all images, in their order, for model and guide alike."""

    def model(x: Tensor, batch_size: int) -> None:
        with pyro.plate("data", len(x), subsample_size=batch_size) as index:
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index, 0])

    def guide(x: Tensor, batch_size: int) -> None:
        with pyro.plate("data", len(x), subsample_size=batch_size) as index:
            pyro.sample("z", dist.Normal(x[index, 0] / 2, math.sqrt(0.5)))

    exact = torch.distributions.Normal(ZERO, math.sqrt(2)).log_prob(x[:, 0])
    for batch_size in (2, 6, 64):  # the posterior is the guide: every weight is p(x)
        found = ppl_gen.log_weights(model, guide, x, batch_size, num_samples=3)
        torch.testing.assert_close(found, exact.expand(3, -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("where", ["model", "model alone", "guide", "neither"])
def test_a_subsample_at_random_that_densities_use_is_refused(where: str) -> None:
    """A plate of more rows than images draws rows at every call: a table of one row for each image is then read at
    random. Without a use of the rows it is a plate of the images."""
    c = torch.randn(30, dtype=torch.float64)
    x = c + torch.randn(30, dtype=torch.float64)

    def of(rows: Tensor, who: str) -> Tensor:
        return c[rows] if where.startswith(who) else torch.zeros(len(rows), dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", 1000 if where == "neither" else 30, subsample_size=len(x)) as rows:
            z = pyro.sample("z", dist.Normal(of(rows, "model"), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        size = {"neither": 1000, "model alone": len(x)}.get(where, 30)
        with pyro.plate("data", size, subsample_size=len(x)) as rows:
            pyro.sample("z", dist.Normal(x / 2 + of(rows, "guide"), 1.0))

    if where == "neither":
        found = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=4000)
        exact = dist.Normal(torch.zeros_like(x), math.sqrt(2)).log_prob(x)
        assert float((found.log_px - exact).abs().max()) < 0.1
    else:
        with pytest.raises(
            BadInput, match=rf"^{where.split()[0]}: for fewer than 30 images plate 'data' draws rows at random"
        ):
            ppl_gen.log_marginal_likelihood(model, guide, x)


def test_a_plate_without_a_size_has_that_of_each_batch(x: Tensor) -> None:
    """Also for images that are drawn from the model, and for a guide that enumerates."""

    def model(x: Tensor | None = None, *, n: int = 1) -> Tensor:
        with pyro.plate("data"):
            count = n if x is None else len(x)
            z = pyro.sample("z", dist.Normal(torch.zeros(count, dtype=F64), 1.0))
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, PIXELS), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(x.sum(-1) / (PIXELS + 1), (PIXELS + 1) ** -0.5))

    pair = Pair.read(model, guide, x)
    torch.testing.assert_close(pair.terms(x, num_samples=2).log_weight, _gaussian(x).expand(2, -1))
    assert pair.draw_images(x[:4])[0].shape == (4, PIXELS)


def test_plates_that_are_refused(x: Tensor) -> None:
    def pixels_in_part(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            with pyro.plate("pixels", PIXELS, subsample_size=2, dim=-1) as some:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, some])

    def condition(x: Tensor) -> None:
        z = pyro.sample("scale", dist.LogNormal(ZERO, 1.0), obs=ONE)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(ZERO, z))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Tensor, dim: int = -1) -> None:
        with pyro.plate("data", len(x), dim=dim):
            pyro.sample("z", dist.Normal(x[:, :1] if dim == -2 else x[:, 0], 1.0))

    with pytest.raises(BadInput, match="plate 'pixels' of pixels_in_part takes 2 of 3 elements"):
        ppl_gen.log_weights(pixels_in_part, lambda x: guide(x, -2), x, num_samples=1)
    with pytest.raises(BadInput, match=r"observes 'scale' outside of all plates.*block\(model, hide=\['scale'\]\)"):
        ppl_gen.log_weights(condition, guide, x, num_samples=1)
    hidden = pyro.poutine.block(condition, hide=["scale"])
    assert ppl_gen.log_weights(hidden, guide, x, num_samples=2).shape == (2, 6)
