"""The exact ELBO and its gradient against one call of stock Pyro for each state."""

import pytest
import torch
from discrete_pairs import ALL, images
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.inference import exact_gradient as module
from ppl_gen.inference.exact_gradient import exact_elbo, exact_gradient, num_states
from ppl_gen.inference.pair import Pair


@pytest.mark.parametrize("name", ALL)
def test_by_enumeration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ALL[name]()
    x = images(2)
    pair = Pair.read(own.model, own.guide, x)
    assert pair.vectorized == (name != "flat")
    counts = {"plates": 8, "flat": 8, "layers": 16, "one-hot": 27, "impossible": 27, "index": 3, "fork": 8}
    assert num_states(pair, x) == counts[name]
    expected = own.elbo(x)
    torch.testing.assert_close(exact_elbo(pair, x), expected)

    monkeypatch.setattr(module, "_NUMBERS", 20)  # pieces of a few states and images
    parameters: list[Tensor] = [*own.parameters(), torch.zeros(1, requires_grad=True)]
    elbo, gradient = exact_gradient(pair, parameters, x)
    assert elbo == pytest.approx(float(expected.mean().detach()))
    truth = torch.autograd.grad(expected.mean(), parameters, allow_unused=True)
    for ours, theirs in zip(gradient, truth, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


def test_too_many_states(monkeypatch: pytest.MonkeyPatch) -> None:
    own, x = ALL["layers"](), images()
    monkeypatch.setattr(module, "MOST_STATES", 15)
    with pytest.raises(BadInput, match="has 16 values of z, but the exact gradient is a sum over at most 15"):
        num_states(Pair.read(own.model, own.guide, x), x)
