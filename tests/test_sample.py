"""Images from a run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

import ppl_gen
from ppl_gen import fit, sample
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.config import Config
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config(
        "vae",
        {"hidden_dims": (16,), "latent_dim": 3},
        data=DataOptions("digits", train_size=300),
        training=TrainingOptions(epochs=2),
        num_samples=30,
    )
    return Run.start(config, out=tmp_path_factory.mktemp("runs") / "vae", quiet=True).directory.path


@pytest.fixture
def vae(elsewhere: Path, fitted: Path) -> Path:
    return Path(shutil.copytree(fitted, elsewhere / "vae"))


def test_prior_as_a_picture(vae: Path, call: Call) -> None:
    status, out, err = call(sample.command, "vae", "--num-images", "7")
    assert status == 0, err
    assert "7 images written to vae/samples.png" in out
    picture = matplotlib.image.imread(vae / "samples.png")
    assert picture.shape[:2] == (3 * 3 * 10, 3 * 3 * 10)  # 3 x 3 images of 8 x 8 with a border of 1, each pixel 3 x 3
    assert 0 <= picture.min() < picture.max() <= 1


def test_the_same_seed_gives_the_same_numbers(vae: Path, call: Call) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert call(sample.command, "vae", "--num-images", "4", "--seed", str(seed), "--out", f"{name}.npy")[0] == 0
    a, b, c = (np.load(f"{name}.npy") for name in "abc")
    assert a.shape == (4, 8, 8)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_draws_around_an_image_have_its_mean(vae: Path, call: Call) -> None:
    """Of 4,000 binary draws, within 4.5 standard errors of the mean of as many means: false alarms at 5e-4."""
    how = ("--source", "image", "--image", "5", "--num-images", "4000")
    assert call(sample.command, "vae", *how, "--out", "means.npy")[0] == 0
    assert call(sample.command, "vae", *how, "--draws", "--out", "draws.npy")[0] == 0
    means, draws = np.load("means.npy"), np.load("draws.npy")
    assert set(np.unique(draws)) <= {0.0, 1.0}
    error = np.sqrt((draws.var(0) + means.var(0)) / 4000) + 1e-3
    assert (np.abs(draws.mean(0) - means.mean(0)) < 4.5 * error).all()


def test_grid_is_the_decoder_at_quantiles(vae: Path, call: Call) -> None:
    how = ("--source", "grid", "--num-images", "9", "--units", "2", "0", "--out", "grid.npy")
    status, _, err = call(sample.command, "vae", *how)
    assert status == 0, err
    model = ppl_gen.load(vae).model
    middle = model.likelihood(torch.zeros(1, 3)).mean.detach().reshape(8, 8)  # type: ignore[operator]
    grid = np.load("grid.npy").reshape(3, 3, 8, 8)
    np.testing.assert_allclose(grid[1, 1], middle, atol=0.05)  # quantiles of 10,000 draws
    high = torch.distributions.Normal(0, 1).icdf(torch.tensor(5 / 6))
    corner = model.likelihood(torch.stack([high, torch.zeros(()), high])[None]).mean  # type: ignore[operator]
    np.testing.assert_allclose(grid[0, 2], corner.detach().reshape(8, 8), atol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-images", "0"), "--num-images 0"),
        (("--out", "picture.jpg"), "--out picture.jpg: must end in .png or .npy"),
        (("--out", "nowhere/a.png"), "there is no directory nowhere"),
        (("--source", "image", "--image", "9999"), "--image 9999: the test split has 300"),
        (("--source", "grid", "--num-images", "8"), "--num-images 8: must be a square"),
        (("--source", "grid", "--units", "0", "3"), "must be two different units from 0 to 2"),
    ],
)
def test_bad_options(vae: Path, call: Call, options: tuple[str, ...], message: str) -> None:
    status, _, err = call(sample.command, "vae", *options)
    assert status == 2
    assert message in err


LABELLED = """
import pyro, torch
import pyro.distributions as dist
from torch import nn


class Labelled(nn.Module):
    def __init__(self, data_dim):
        super().__init__()
        self.net = nn.Linear(12, data_dim)

    def model(self, x=None, y=None, *, n=1):
        count = n if x is None else len(x)
        y = torch.zeros(count, dtype=torch.long) if y is None else y
        with pyro.plate("data", count):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            label = nn.functional.one_hot(y, 10)
            logits = self.net(torch.cat([z, label], -1))
            logits = logits + 50.0 * nn.functional.pad(label, (0, logits.shape[-1] - 10))  # the pixel of its number
            return pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self, data_dim):
        super().__init__()
        self.net = nn.Linear(data_dim, 2)

    def guide(self, x, y):
        assert y.shape == x.shape[:1]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), 1.0).to_event(1))
"""


def test_an_image_goes_with_its_label(elsewhere: Path, call: Call) -> None:
    (elsewhere / "own.py").write_text(LABELLED)
    named = ("--guide", "own.py:Guide")
    quick = ("--data", "digits", "--train-size", "200", "--epochs", "1", "--num-samples", "30", "--out", "run")
    status, _, err = call(fit.command, "own.py:Labelled", *named, *quick)
    assert status == 0, err
    labels = load_data(DataOptions("digits")).test.labels
    assert labels is not None
    for image in range(5):
        how = ("--source", "image", "--image", str(image), "--num-images", "2", "--out", "means.npy")
        status, _, err = call(sample.command, "run", "--model", "own.py:Labelled", *named, *how)
        assert status == 0, err
        lit = np.load("means.npy").reshape(2, -1)[:, :10].argmax(-1)
        assert lit.tolist() == 2 * [int(labels[image])]
    assert len(set(labels[:5].tolist())) > 1


def test_other_models(elsewhere: Path, call: Call) -> None:
    quick = ("--data", "digits", "--train-size", "200", "--epochs", "1")
    assert call(fit.command, "mixture", *quick, "--num-components", "3", "--out", "mixture")[0] == 0
    assert call(sample.command, "mixture", "--draws")[0] == 0
    for source, message in (("image", "does not sample z"), ("grid", "needs a continuous z of 2 units")):
        status, _, err = call(sample.command, "mixture", "--source", source)
        assert status == 2
        assert message in err
