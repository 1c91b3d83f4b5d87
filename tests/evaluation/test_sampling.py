"""Planes of a latent space: which models have one, and a grid in steps of equal prior mass."""

import pytest
import torch
from pairs import ExactGuide, LinearGaussian
from torch import nn

from ppl_gen.evaluation.sampling import equal_mass_grid, vector_size
from ppl_gen.guides.bernoulli import Bernoulli
from ppl_gen.inference.pair import Pair
from ppl_gen.models.belief_net import BeliefNet


def test_grid_is_at_quantiles_of_the_prior() -> None:
    """Quantiles of 10,000 normal draws have standard errors to 0.016 here: 0.08 is five, false alarms below 1e-5."""
    torch.manual_seed(0)
    grid = equal_mass_grid(LinearGaussian(latent_dim=3), (2, 0), 3, 5)
    steps = torch.distributions.Normal(0, 1).icdf(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    assert grid.shape == (5, 5, 3)
    assert (grid[..., 2] - steps).abs().max() < 0.08
    assert (grid[..., 0] - steps[:, None]).abs().max() < 0.08
    assert (grid[..., 1] == 0).all()


class _Alone(nn.Module):
    """A model without `prior()` and `likelihood(z)`."""

    def __init__(self, model: LinearGaussian):
        super().__init__()
        self.model = model.model


@pytest.mark.parametrize("size", [1, 3])
def test_units_of_a_continuous_vector(size: int) -> None:
    model, x = LinearGaussian(latent_dim=size), torch.zeros(4, 5, dtype=torch.float64)
    guide = ExactGuide(model)
    assert vector_size(model, Pair.read(model, guide, x)) == size
    assert vector_size(_Alone(model), Pair.read(model, guide, x)) == 0


def test_binary_units_have_no_plane() -> None:
    model = BeliefNet(5, latent_dim=3)
    assert vector_size(model, Pair.read(model, Bernoulli(5, torch.full((5,), 0.5), 3, "z"), torch.zeros(4, 5))) == 0
