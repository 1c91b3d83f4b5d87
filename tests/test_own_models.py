"""Models of a user's own with what the package's have not: labels as a site, plates within that of the images, a loop
over a plate, factors, values of which some have no probability. From fit to pictures and samples."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_gen import fit, sample

Call = Callable[..., tuple[int, str, str]]
QUICK = (
    "--data",
    "digits",
    "--train-size",
    "60",
    "--epochs",
    "1",
    "--num-samples",
    "30",
    "--binarization",
    "threshold",
)
PAIRS = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self, data_dim):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(4, data_dim), nn.Linear(data_dim, 8)

    def likelihood_of(self, z):
        return dist.Bernoulli(logits=self.decoder(z)).to_event(1)

    def parts(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        return loc, (log_scale / 10).exp()


class Joint(Base):
    '''The label is observed too, and before the image; nothing but z is latent.'''

    def __init__(self, data_dim):
        super().__init__(data_dim)
        self.of_label = nn.Embedding(10, 4)

    def model(self, x=None, y=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            y = pyro.sample("y", dist.Categorical(logits=torch.zeros(10)), obs=y)
            z = pyro.sample("z", dist.Normal(self.of_label(y), 1.0).to_event(1))
            return pyro.sample("x", self.likelihood_of(z), obs=x)


class Plate(Base):
    '''The units of z are in a plate of their own.'''

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            with pyro.plate("units", 4, dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", self.likelihood_of(z.transpose(-1, -2)), obs=x)


class PlateGuide(Base):
    def guide(self, x):
        loc, scale = self.parts(x)
        with pyro.plate("data", len(x), dim=-1), pyro.plate("units", 4, dim=-2):
            pyro.sample("z", dist.Normal(loc.T, scale.T))


class Pixels(Base):
    '''The pixels are in a plate, so that an image is a column.'''

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            with pyro.plate("pixels", 64, dim=-2):
                logits = self.decoder(z).transpose(-1, -2)
                return pyro.sample("x", dist.Bernoulli(logits=logits), obs=None if x is None else x.T)


class Loop(Base):
    '''A loop over a plate, whose sites have names of their own.'''

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = [pyro.sample(f"z{unit}", dist.Normal(torch.zeros(()), 1.0)) for unit in pyro.plate("units", 4)]
            return pyro.sample("x", self.likelihood_of(torch.stack(z, -1)), obs=x)


class LoopGuide(Base):
    def guide(self, x):
        loc, scale = self.parts(x)
        with pyro.plate("data", len(x)):
            for unit in pyro.plate("units", 4):
                pyro.sample(f"z{unit}", dist.Normal(loc[:, unit], scale[:, unit]))


class Factor(Base):
    '''A factor beside the image, which makes no density of its probability.'''

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.factor("small", -0.1 * z.square().sum(-1))
            return pyro.sample("x", self.likelihood_of(z), obs=x)


class Bounded(Base):
    '''A z at which x is impossible, which the guide draws now and then.'''

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            near = dist.Binomial((z.abs().amax(-1) < 3).to(z), 0.5)
            pyro.sample("near", near, obs=None if x is None else torch.ones(len(x)))
            return pyro.sample("x", self.likelihood_of(z), obs=x)


class BoundedGuide(Base):
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * self.parts(x)[0], 0.66).to_event(1))
"""


@pytest.mark.parametrize(
    ("model", "guide", "samples"),
    [
        ("Joint", "normal", True),
        ("Plate", "own.py:PlateGuide", True),
        ("Pixels", "normal", False),
        ("Loop", "own.py:LoopGuide", True),
        ("Factor", "normal", True),
    ],
)
def test_from_fit_to_samples(elsewhere: Path, call: Call, model: str, guide: str, samples: bool) -> None:
    Path("own.py").write_text(PAIRS)
    status, out, err = call(fit.command, f"own.py:{model}", "--guide", guide, *QUICK, "--out", "run")
    assert status == 0, err
    assert ("no picture" in err) is not samples
    assert Path("run/figures/samples.png").exists() is samples and Path("run/report.html").exists()
    summary = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))
    assert summary["observation"] == "probability" and summary["elbo"]["mean"] < summary["log_px"]["mean"]
    named = ("--model", f"own.py:{model}", *(("--guide", guide) if guide.startswith("own") else ()))
    status, out, err = call(sample.command, "run", *named, "--num-images", "3")
    assert (status, "3 images written" in out) == ((0, True) if samples else (2, False)), err


def test_a_bound_of_minus_infinity(elsewhere: Path, call: Call) -> None:
    """Is said in the table, and its picture is left out."""
    Path("own.py").write_text(PAIRS)
    options = (*QUICK[:6], "--num-samples", "1000", *QUICK[8:])
    status, out, err = call(fit.command, "own.py:Bounded", "--guide", "own.py:BoundedGuide", *options, "--out", "run")
    assert status == 0, err
    assert "-inf" in out and Path("run/figures/gap_histogram.png").exists() and Path("run/report.html").exists()
    assert not Path("run/figures/bound_against_k.png").exists()


def test_a_guide_that_leaves_the_support_is_not_fitted(elsewhere: Path, call: Call) -> None:
    """Its ELBO is -inf, whether or not a few draws show it."""
    uniform = "dist.Uniform(-9 * torch.ones(4), 9.0).to_event(1)"
    Path("own.py").write_text(
        PAIRS.replace(
            "dist.Normal(torch.zeros(4), 1.0).to_event(1))\n            near", f"{uniform})\n            near"
        )
    )
    status, _, err = call(fit.command, "own.py:Bounded", "--guide", "own.py:BoundedGuide", *QUICK, "--out", "run")
    assert status == 2 and "draws 'z' outside the support of its prior in Bounded" in err and err.count("\n") == 1, err


def test_a_contract_that_a_plate_breaks_is_refused(elsewhere: Path, call: Call) -> None:
    """`prior()` is of one event per image."""
    prior = "\n    def prior(self):\n        return dist.Normal(torch.zeros(4), 1.0).to_event(1)\n"
    Path("own.py").write_text(PAIRS.replace("\n\nclass PlateGuide", f"{prior}\n\nclass PlateGuide"))
    status, _, err = call(fit.command, "own.py:Plate", "--guide", "own.py:PlateGuide", *QUICK, "--out", "run")
    assert status == 2 and "site 'z' is in a plate within 'data'" in err and err.count("\n") == 1, err
