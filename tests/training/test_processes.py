"""Two processes against one, started as a user does; on the bundled digits."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from torchrun import MIXTURE, TORCHRUN, run_two

from ppl_gen import evaluate, fit

FIXED = '''
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Fixed(nn.Module):
    """A normal guide whose noise is a function of the image."""

    def __init__(self, data_dim, latent_dim):
        super().__init__()
        self.net = nn.Linear(data_dim, 2 * latent_dim)
        self.latent_dim = latent_dim

    def guide(self, x):
        loc, scale = self.net(x).chunk(2, -1)
        noise = (x.sum(-1, keepdim=True) + torch.arange(self.latent_dim)).sin() if self.training else None
        with pyro.plate("data", len(x)):
            pyro.sample("z", Chosen(loc, scale.exp(), noise).to_event(1))


class Chosen(dist.Normal):
    def __init__(self, loc, scale, noise=None, validate_args=None):
        super().__init__(loc, scale, validate_args=validate_args)
        self.noise = noise

    def expand(self, batch_shape, _instance=None):
        return Chosen(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.noise)

    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape) if self.noise is None else self.loc + self.scale * self.noise
'''


def _metrics(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _same_curves(one: str, other: str) -> None:
    """To float rounding, over all epochs."""
    ours, theirs = _metrics(one), _metrics(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for key in ("loss", "validation"):
        curves = [[line[key] if key == "loss" else line[key]["elbo"] for line in each[1:]] for each in (ours, theirs)]
        np.testing.assert_allclose(*curves, rtol=1e-5)


@pytest.mark.slow
def test_noise_of_its_own_makes_one_curve_of_two(elsewhere: Path) -> None:
    """A pair with the noise of each image given: training by two processes, on batches of uneven shares, is that of
    one, and so are their evaluations, image by image within 5 Monte Carlo errors (rate of false alarms 2e-4)."""
    Path("own.py").write_text(FIXED)
    options = ("vae", "--guide", "own.py:Fixed", *MIXTURE[:-2], "--latent-dim", "2", "--hidden-dims", "16")
    options += ("--epochs", "3", "--learning-rate", "0.01", "--num-samples", "300", "--out")
    done = run_two("ppl_gen.fit", *options, "two")
    assert done.returncode == 0, done.stderr
    fit.command([*options, "one"])
    _same_curves("one", "two")
    assert done.stdout.count("run: two") == 1  # the first alone speaks
    found = []
    for run in ("one", "two"):
        with xarray.open_dataset(f"{run}/evaluation.nc", group="evaluation", engine="h5netcdf") as images:
            found.append(images.load())
    one, two = found
    assert len(two["image"]) == 300 and two["label"].values.tolist() == one["label"].values.tolist()
    error = np.sqrt(one["elbo_mc_se"].values ** 2 + two["elbo_mc_se"].values ** 2)
    difference = np.abs(one["elbo"].values - two["elbo"].values)
    assert (difference < 5 * error).all() and (difference > 0).mean() > 0.4  # the second's images have other noise
    summary = json.loads(Path("two/evaluation.json").read_text(encoding="utf-8"))
    assert summary["elbo"]["mean"] == pytest.approx(float(two["elbo"].mean()))
    assert Path("two/report.html").exists() and Path("two/figures/samples.png").exists()
    for more, words in (
        (("--num-images", "1"), "--num-images 1: each of the 2 processes needs an image"),
        (("--gaps",), "--gaps: needs a single process"),
    ):
        done = run_two("ppl_gen.evaluate", "one", "--guide", "own.py:Fixed", *more)
        assert done.returncode != 0 and done.stderr.count("error: ") == 1 and words in done.stderr, done.stderr


@pytest.mark.slow
def test_interrupted_with_two_and_resumed_with_one(elsewhere: Path) -> None:
    """Ctrl-C, as a terminal sends it to all; no noise but the order of the images."""
    options = ("mixture", *MIXTURE, "--epochs", "60", "--learning-rate", "0.01", "--num-samples", "20", "--out")
    process = subprocess.Popen(
        [*TORCHRUN, "ppl_gen.fit", *options, "two"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while time.monotonic() < until and not (Path("two/metrics.jsonl").exists() and len(_metrics("two")) > 2):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "continue with: python -m ppl_gen.fit --resume two" in err, out + err
    before = len(_metrics("two"))
    assert 3 <= before < 61
    fit.command(["--resume", "two"])
    fit.command([*options, "one"])
    assert len(_metrics("two")) == 61
    _same_curves("one", "two")


ANYHOW = '''
import os

import numpy as np
import torch

from ppl_gen.models.vae import VAE


class Anyhow(VAE):
    """First weights that no seed of torch decides; writes down what its processes hold at each step."""

    def __init__(self, data_shape, data_mean=None):
        super().__init__(data_shape, data_mean, latent_dim=2, hidden_dims=(4,))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.from_numpy(np.random.default_rng().normal(0, 0.1, tuple(parameter.shape))))

    def likelihood(self, z):
        if self.training:
            with open(f"weights-{os.environ['RANK']}", "a") as file:
                file.write(f"{sum(p.double().sum().item() for p in self.parameters())!r}\\n")
        return super().likelihood(z)
'''


@pytest.mark.slow
def test_all_hold_the_same_weights(elsewhere: Path) -> None:
    Path("anyhow.py").write_text(ANYHOW)
    options = ("anyhow.py:Anyhow", "--data", "digits", "--train-size", "300", "--epochs", "2", "--num-samples", "30")
    done = run_two("ppl_gen.fit", *options, "--out", "two")
    assert done.returncode == 0, done.stderr
    # Some are written twice: steps are compared with those of the functions.
    written = [Path(f"weights-{rank}").read_text(encoding="utf-8").splitlines() for rank in (0, 1)]
    held = [[*dict.fromkeys(lines)][-6:] for lines in written]
    assert held[0] == held[1]
    assert len(set(held[0])) == 6  # that move


@pytest.mark.slow
def test_annealing_is_shared(elsewhere: Path) -> None:
    options = ("vae", *MIXTURE[:-2], "--latent-dim", "2", "--hidden-dims", "8", "--epochs", "1", "--num-samples", "50")
    fit.command([*options, "--out", "run"])
    annealing = ("--estimator", "annealed", "--num-images", "7", "--sandwich", "3", "--annealed.num-temperatures", "20")
    done = run_two("ppl_gen.evaluate", "run", *annealing)
    assert done.returncode == 0, done.stderr
    summary = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))
    assert summary["num_images"] == 7 and summary["sandwich"]["num_images"] == 3
    assert summary["sandwich_importance"]["num_images"] == 3 and summary["options"]["sandwich"] == 3
    evaluate.command(["run", *annealing])
    alone, shared = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))["log_px"], summary["log_px"]
    allowed = 4 * (alone["mc_se"] ** 2 + shared["mc_se"] ** 2) ** 0.5 - alone["bias"] - shared["bias"]
    assert abs(alone["mean"] - shared["mean"]) < allowed
    assert done.stdout.count("annealed, 16 chains x 20 temperatures") == 1
