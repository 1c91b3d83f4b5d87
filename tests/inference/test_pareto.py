"""The tail of the ELBO's terms: where the mean of the log weights does not exist."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_gen
from ppl_gen.core.errors import HEAVY_TAIL
from ppl_gen.inference.pareto import khat, lower_tail

GUIDES = {
    "normal": (lambda: dist.Normal(0.3, 0.45), False),
    "far too wide": (lambda: dist.Normal(0.3, 3.0), False),
    "laplace": (lambda: dist.Laplace(0.3, 0.5), False),
    "5 degrees": (lambda: dist.StudentT(5.0, 0.3, 0.45), False),
    "2 degrees": (lambda: dist.StudentT(2.0, 0.3, 0.45), True),
    "1.5 degrees": (lambda: dist.StudentT(1.5, 0.3, 0.45), True),
    "cauchy": (lambda: dist.Cauchy(0.3, 0.45), True),
}
"""Guides of z, and if E_q[z^2], and with it the ELBO under a normal prior, is infinite. Between 2 and 4 degrees of
freedom its variance is, and the note may come."""


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("units", [1, 10])
def test_an_elbo_that_is_infinite_is_told(name: str, units: int) -> None:
    """Of 2,000 images, 250 are looked at, so that the error of k-hat's median is 0.02."""
    of_z, infinite = GUIDES[name]

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(units), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :1], 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", of_z().expand([len(x), units]).to_event(1))

    found = ppl_gen.log_marginal_likelihood(model, guide, torch.full((2000, 1), 0.3), num_samples=1000)
    assert found.heavy_tail is infinite
    assert ("heavy_tail" in found.more_entries("importance")) is infinite
    assert any(note == HEAVY_TAIL for note in found.notes()) is infinite


def test_the_tail_is_that_of_the_distances_to_the_largest() -> None:
    """-log w with the tail of a Pareto distribution of shape 1.25, and not that of the largest weights."""
    torch.manual_seed(0)
    log_w: Any = -torch.rand(20_000, 3, dtype=torch.float64).pow(-1.25)
    found = lower_tail(log_w, 2)
    assert found[:2].sub(1.25).abs().max() < 0.2 and found[2].isnan()  # 5 errors of 1 + k over the root of 424 values
    assert float(khat(log_w).max()) < 0.5
    infinite = log_w.clone()
    infinite[7, 0] = -torch.inf
    assert lower_tail(infinite, 2)[0].isnan() and lower_tail(infinite, 2)[1] == found[1]
    assert lower_tail(log_w[:, :1], 2).shape == (1,) and lower_tail(torch.zeros(100, 4), 2).isnan().all()
