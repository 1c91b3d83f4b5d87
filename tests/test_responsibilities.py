"""`responsibilities`: what is typed, what is written, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from commands import REFUSED, Call, read, refused
from torch import nn

import ppl_gen
from ppl_gen import fit, responsibilities
from ppl_gen.run import Run


def test_responsibilities(three_runs: Path, call: Call) -> None:
    status, out, err = call(responsibilities.command, "mixture")
    assert status == 0, err
    assert "purity" in out and "chance" in out
    found = read("mixture/responsibilities.json")
    table = found["table"]
    assert sum(row["images"] for row in table) == found["num_images"] == 300
    assert sum(row["weight"] for row in table) == pytest.approx(1)
    assert [row["weight"] for row in table] == sorted((row["weight"] for row in table), reverse=True)
    inside = sum(row["purity"] * row["images"] for row in table if row["images"]) / 300
    assert found["purity"]["mean"] == pytest.approx(inside) and inside > found["purity"]["chance"]
    model, _, data, _ = ppl_gen.load("mixture")
    with torch.no_grad():
        prior, states = model.prior(), torch.arange(5)
        pixels = torch.distributions.Bernoulli(logits=model.likelihood(states).logits.unsqueeze(1))
        joint = prior.log_prob(states).unsqueeze(1) + pixels.log_prob(data.targets("test")).sum(-1)
    in_use = int((joint.softmax(0).sum(1) >= 1).sum())
    assert found["components"] == {"in_use": in_use, "of": 5} == read("mixture/evaluation.json")["components"]
    assert {path.name for path in Path("mixture/figures").iterdir()} >= {
        "components_by_label.png",
        "responsibilities.png",
    }


class ThreeMeans(nn.Module):
    """A mixture of three normals, whose component is summed over."""

    def __init__(self, data_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, data_dim))
        self.register_buffer("means", torch.tensor([-3.0, 0.0, 3.0]))

    def model(self, x: Any = None, *, n: int = 1) -> Any:
        with pyro.plate("data", n if x is None else len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.means[y].unsqueeze(-1), 1.0).to_event(1))  # type: ignore[index]
            return pyro.sample("x", dist.Bernoulli(logits=z * self.weight).to_event(1), obs=x)


class AtOneMean(nn.Module):
    """A guide that stays near a number."""

    def __init__(self, data_dim: int, *, scale: float = 0.3):
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.tensor(3.0)), scale

    def guide(self, x: Any) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc.expand(len(x), 1), self.scale).to_event(1))


@pytest.mark.parametrize(("scale", "untrusted"), [(0.3, True), (6.0, False)])
def test_what_the_weights_say(elsewhere: Path, scale: float, untrusted: bool) -> None:
    """p(y | x) is by importance sampling: a guide that misses two of three components shows in k-hat."""
    x = torch.bernoulli(torch.full((200, 4), 0.5), generator=torch.Generator().manual_seed(0))
    short: Any = {"epochs": 1, "learning_rate": 1e-9, "num_samples": 20, "quiet": True}
    run = Run.fit(ThreeMeans, guide=AtOneMean(4, scale=scale), data=x, **short)
    found = run.explain(num_samples=1000, quiet=True)
    assert (found.summary["untrusted"] > 0.5) == untrusted and found.summary["ess"]["min"] >= 1
    assert "not trusted (k-hat too high or unknown): " in str(found)


def test_without_labels(elsewhere: Path, call: Call) -> None:
    np.save("images.npy", np.random.default_rng(0).random((200, 12)) < 0.3)
    small = ("--data", "images.npy", "--epochs", "1", "--num-samples", "5")
    assert call(fit.command, "mixture", *small, "--out", "own")[0] == 0
    assert call(responsibilities.command, "own")[0] == 0
    assert "purity" not in read("own/responsibilities.json")
    assert not Path("own/figures/components_by_label.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *REFUSED,
        (("vae",), ["has no components"]),
        (("belief-net",), ["has no components"]),
        (("mixture", "--num-images", "301"), ["--num-images 301", "300"]),
        (("mixture", "--num-images", "3"), ["--num-images 3", "at least 10"]),
    ],
)
def test_bad_input(three_runs: Path, call: Call, arguments: tuple[str, ...], words: list[str]) -> None:
    refused(call, responsibilities.command, *arguments, words=words)
