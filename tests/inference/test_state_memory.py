"""Memory of an enumeration, and how many images are summed over at a time."""

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.inference.exact import exact_log_px
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.state_memory import (
    block_size,
    cheap_to_enumerate,
    memory_needed,
    numbers_per_state,
    require_memory,
)
from ppl_gen.models.belief_net import BeliefNet


def test_memory_is_asked_for_before_it_is_used() -> None:
    """A belief net of 60 units is read without listing its states."""
    model = BeliefNet(6, latent_dim=60)
    pair = Pair.read(model, Enumerated(), torch.zeros(3, 6))
    assert pair.num_states == 2**60
    with pytest.raises(BadInput, match=r"10\^18 latent states.*more memory than any machine has; .*bernoulli"):
        require_memory(pair, 100)
    require_memory(Pair.read(BeliefNet(6, latent_dim=4), Enumerated(), torch.zeros(3, 6)), 100, gradients=True)


def test_a_likelihood_that_broadcasts_pixels_is_enumerated_in_small_blocks() -> None:
    """Stock Bernoullis make an array of states x images x pixels: fewer states are cheap, and blocks are smaller."""
    net = BeliefNet(784, latent_dim=12)

    class Stock(BeliefNet):
        def likelihood(self, z: Tensor) -> Any:
            return dist.Bernoulli(logits=z @ self.weight + self.bias).to_event(1)

    stock = Stock(784, latent_dim=12)
    stock.load_state_dict(net.state_dict())
    x = torch.bernoulli(torch.full((3, 784), 0.2))
    ours, theirs = (Pair.read(model, Enumerated(), x) for model in (net, stock))
    assert (numbers_per_state(ours), numbers_per_state(theirs)) == (1 / 16, 784)
    assert cheap_to_enumerate(ours) and not cheap_to_enumerate(theirs)
    assert block_size(ours) == 1000 and block_size(theirs) == 20
    large = Pair.read(BeliefNet(784, latent_dim=20), Enumerated(), x)
    assert block_size(large) == 1000 and block_size(large, posterior=True) == 64
    assert memory_needed(theirs, 100) > 100 * memory_needed(ours, 100)
    torch.testing.assert_close(exact_log_px(stock, x), exact_log_px(net, x))
