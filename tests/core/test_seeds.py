"""The seed of torch's generators."""

import torch

from ppl_gen.core.seeds import seed_torch


def test_draws_are_those_of_torch() -> None:
    for number in (0, 2**63 - 1, 2**64 - 1, -1):
        torch.manual_seed(number)
        expected = torch.rand(3), torch.get_rng_state()
        seed_torch(number)
        assert torch.equal(torch.rand(3), expected[0]) and torch.equal(torch.get_rng_state(), expected[1])
