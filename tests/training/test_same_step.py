"""Two ways to compute a step are compared: loss, gradients and buffers."""

import torch
from torch import Tensor, nn

from ppl_gen.training.same_step import same_step


class Net(nn.Module):
    """A layer with a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("mean", torch.zeros(3))

    def loss(self, x: Tensor, move: float = 0.1, times: float = 1.0, slope: float = 1.0) -> Tensor:
        self.mean += move * (x.mean(0) - self.mean)  # type: ignore[operator]
        value = times * self.layer(x).square().mean()
        return value.detach() + slope * (value - value.detach())


def test_a_difference_in_each_part_is_found() -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(5, 3)
    before, noise = [each.clone() for each in net.state_dict().values()], torch.get_rng_state()
    for changes, same in (
        ({}, True),
        ({"times": 1 + 1e-6}, True),  # rounding
        ({"times": 1.01}, False),
        ({"slope": 1.01}, False),
        ({"move": 0.11}, False),
    ):
        found = same_step(net.loss, lambda x, changes=changes: net.loss(x, **changes), net, (x,))
        assert found == same, changes
    assert all(torch.equal(one, two) for one, two in zip(before, net.state_dict().values(), strict=True))
    assert torch.equal(noise, torch.get_rng_state())


def test_attributes() -> None:
    """What one of both changes in them is a difference, and is undone."""
    net, x = Net(), torch.randn(5, 3)

    def counting(x: Tensor) -> Tensor:
        net.count = getattr(net, "count", 0) + 1  # type: ignore[assignment]
        return net.loss(x)

    assert not same_step(net.loss, counting, net, (x,)) and not hasattr(net, "count")
    assert same_step(counting, counting, net, (x,)) and not hasattr(net, "count")


def test_the_same_noise() -> None:
    net, x = Net(), torch.randn(5, 3)
    assert same_step(lambda x: net.loss(x + torch.randn(5, 3)), lambda x: net.loss(x + torch.randn(5, 3)), net, (x,))


def test_a_gradient_that_is_missing() -> None:
    net, x = Net(), torch.randn(5, 3)
    assert not same_step(
        lambda x: net.loss(x), lambda x: (x @ net.layer.weight.T).mean() + net.layer.bias.detach().sum(), net, (x,)
    )


def test_a_loss_that_is_not_finite_is_left_to_the_loop() -> None:
    net, x = Net(), torch.randn(5, 3)
    assert same_step(net.loss, lambda x: net.loss(x) * torch.nan, net, (x,))
