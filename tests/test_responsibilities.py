"""`responsibilities`: what is typed, what is written, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import REFUSED, Call, read, refused

import ppl_gen
from ppl_gen import fit, responsibilities


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
