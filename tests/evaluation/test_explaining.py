"""How components agree with labels, and what the model says of them, against numbers worked out by hand."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_gen.evaluation import explaining
from ppl_gen.inference.pair import Pair


def test_purity_by_hand() -> None:
    """The example of Manning, Raghavan and Schütze (2008), figure 16.4: purity 12/17, mutual information 0.36."""
    table = np.array([[5, 1, 0], [1, 4, 1], [2, 0, 3]])
    components, labels = (np.repeat(axis.ravel(), table.ravel()) for axis in np.indices(table.shape))
    assert (explaining.contingency(components, labels, 3, 3) == table).all()
    assert explaining.purity(table) == pytest.approx(12 / 17)
    found = explaining.agreement(components, labels)
    assert found["purity"]["mean"] == pytest.approx(12 / 17)
    assert found["purity"]["most_frequent_label"] == pytest.approx(8 / 17)
    assert found["purity"]["most_frequent_label"] <= found["purity"]["chance"] < found["purity"]["mean"]
    assert found["normalized_mutual_information"]["mean"] == pytest.approx(0.36, abs=0.005)


def test_chance_of_one_image_a_component() -> None:
    found = explaining.agreement(np.arange(10), np.arange(10) % 2)
    assert found["purity"]["mean"] == found["purity"]["chance"] == 1.0


def _child(x: Tensor | None = None, *, n: int = 1) -> Tensor:
    """z ~ N(0, 1), a label y with p(y = 1 | z) = sigmoid(8 (z - 1)), and pixels of mean z."""
    with pyro.plate("data", n if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        logits = 8 * (z - 1)
        of_label = dist.Categorical(logits=torch.stack([torch.zeros_like(logits), logits], -1))
        y = pyro.sample("y", of_label, infer={"enumerate": "parallel"})
        mean = (z + 0.0 * y).unsqueeze(-1).expand(*(z + 0.0 * y).shape, 3)
        drawn: Tensor = pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)
        return drawn


def _guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.mean(-1), 1.0))


def test_a_label_that_depends_on_z() -> None:
    """p(y) and E[x | y] against sums over a grid of z. With 10,000 draws of each label, a difference of five standard
    errors is a false alarm once in a million runs."""
    grid = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    prior = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(grid).softmax(0)
    share = (8 * (grid - 1)).sigmoid()
    exact = float((prior * share).sum())
    expected = [float((prior * each * grid).sum() / (prior * each).sum()) for each in (1 - share, share)]
    pair = Pair.read(_child, _guide, torch.randn(5, 3))
    with torch.no_grad():
        weights, means = explaining._from_model(pair)
    assert weights[1] == pytest.approx(exact, abs=5 * 0.0037) and weights.sum() == pytest.approx(1)
    assert means.shape == (2, 3)
    assert means[0].tolist() == pytest.approx([expected[0]] * 3, abs=5 * 0.01)
    assert means[1].tolist() == pytest.approx([expected[1]] * 3, abs=5 * 0.02)
