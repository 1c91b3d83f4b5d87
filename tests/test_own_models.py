"""Models of a user's own with what the package's have not: labels as a site, plates within that of the images, a loop
over a plate, factors, values of which some have no probability. From fit to pictures and samples."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fits import PLAIN, SHORT
from own_classes import PAIRS
from pages import Page

from ppl_gen import evaluate, fill, fit, responsibilities, sample, splice

OWN = """
from ppl_gen.models.mixture import Mixture
from ppl_gen.models.vae import VAE


class Own(Mixture):
    pass


class Conditional(VAE):
    def model(self, x=None, y=None, *, n=1):
        return super().model(x, n=n)
"""

MODEL = '''
import pyro, torch
import pyro.distributions as dist
from torch import nn


class Two(nn.Module):
    """Two latent sites, neither called z, conditioned on the label."""

    def __init__(self, data_dim, *, width: int = 4):
        super().__init__()
        self.net = nn.Linear(width, data_dim)
        self.embed = nn.Embedding(10, width)
        self.width = width

    def model(self, x=None, y=None, *, n=1):
        count = n if x is None else len(x)
        y = torch.zeros(count, dtype=torch.long) if y is None else y
        with pyro.plate("images", count):
            a = pyro.sample("a", dist.Normal(torch.zeros(self.width), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a, 1.0).to_event(1))
            logits = self.net(b + self.embed(y))
            return pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class TwoGuide(nn.Module):
    def __init__(self, data_dim, model):
        super().__init__()
        self.net = nn.Linear(data_dim, 2 * model.width)

    def guide(self, x):
        a, b = self.net(x).chunk(2, -1)
        with pyro.plate("images", len(x)):
            pyro.sample("a", dist.Normal(a, 0.5).to_event(1))
            pyro.sample("b", dist.Normal(b, 0.5).to_event(1))
'''

Call = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.drawn


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
    status, out, err = call(fit.command, f"own.py:{model}", "--guide", guide, *SHORT, "--out", "run")
    assert status == 0, err
    assert ("no picture" in err) is not samples
    assert Path("run/figures/samples.png").exists() is samples and Path("run/report.html").exists()
    summary = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))
    assert summary["observation"] == ("unnormalized" if model == "Factor" else "probability")
    assert ("the model has a factor" in out) is (model == "Factor")
    assert summary["elbo"]["mean"] < summary["log_px"]["mean"]
    named = ("--model", f"own.py:{model}", *(("--guide", guide) if guide.startswith("own") else ()))
    status, out, err = call(sample.command, "run", *named, "--num-images", "3")
    assert (status, "3 images written" in out) == ((0, True) if samples else (2, False)), err


def test_a_bound_of_minus_infinity(elsewhere: Path, call: Call) -> None:
    """Is said in the table, and below the picture, which has no mark for it."""
    Path("own.py").write_text(PAIRS)
    options = (*SHORT[:6], "--num-samples", "1000", *SHORT[8:])
    status, out, err = call(fit.command, "own.py:Bounded", "--guide", "own.py:BoundedGuide", *options, "--out", "run")
    assert status == 0, err
    assert "-inf" in out and Path("run/figures/gap_histogram.png").exists() and Path("run/report.html").exists()
    page = Page(Path("run/report.html").read_text(encoding="utf-8"))
    assert "has no mark for ELBO: the mean is not finite" in page.texts["figcaption"]
    assert "The ELBO is not finite, and neither is the gap" in page.texts["p"]


def test_a_model_with_several_sites_and_labels(elsewhere: Path, call: Call) -> None:
    Path("two.py").write_text(MODEL)
    pair = ("two.py:Two", "--guide", "two.py:TwoGuide")
    status, out, err = call(fit.command, *pair, *PLAIN, "--width", "3", "--dry-run")
    assert status == 0, err
    assert "latent 'a', event shape (3,)" in out and "plate of images 'images'" in out
    assert "5 of 5 parameters have a gradient" in out
    status, out, err = call(fit.command, *pair, *PLAIN, "--width", "3", "--out", "run")
    assert status == 0, err
    named = ("--model", "two.py:Two", "--guide", "two.py:TwoGuide")
    assert call(evaluate.command, "run", *named)[0] == 0
    assert call(fit.command, "two.py:Two", "--resume", "run", *named[2:])[0] == 0


def test_a_model_of_your_own(three_runs: Path, call: Call) -> None:
    """It is named again, a change of its file is told, and labels as an input are refused."""
    Path("own.py").write_text(OWN)
    small = ("--data", "digits", "--train-size", "150", "--epochs", "1", "--num-samples", "5")
    assert call(fit.command, "own.py:Own", *small, "--out", "own")[0] == 0
    assert call(fit.command, "own.py:Conditional", *small, "--latent-dim", "2", "--out", "conditional")[0] == 0
    reduced = {splice: ("--num-images", "10", "--num-batches", "5"), fill: (), responsibilities: ()}
    labels = {splice: "takes labels", fill: "takes labels", responsibilities: "is given the labels of the test split"}
    for module, options in reduced.items():
        status, _, err = call(module.command, "own", *options)
        assert status == 2 and "--model own.py:Own" in err
        assert call(module.command, "own", "--model", "own.py:Own", *options)[0] == 0
        status, _, err = call(module.command, "conditional", "--model", "own.py:Conditional", *options)
        assert status == 2 and labels[module] in err and err.count("\n") == 1
    with open("own.py", "a") as file:
        file.write("# more\n")
    status, _, err = call(fill.command, "own", "--model", "own.py:Own")
    assert status == 0 and "warning: own.py:Own has changed" in err
