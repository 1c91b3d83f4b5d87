"""Runs on images with missing pixels, as a user makes, evaluates, compares and uses them."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Call, read, refused
from fits import FEW, interrupt_after, same_runs
from torch import Tensor

import ppl_gen
from ppl_gen import compare, evaluate, fill, fit
from ppl_gen.core.errors import BadInput
from ppl_gen.models.vae import VAE

SMALL = ("--data", "digits", "--train-size", "100", "--epochs", "1", "--num-samples", "20", "--missing", "0.5")
LINE = ("vae", *SMALL, "--hidden-dims", "8", "--latent-dim", "1")


@pytest.fixture
def runs(elsewhere: Path, call: Call) -> Call:
    """A VAE and a mixture on incomplete digits."""
    for name, command in (
        ("vae", (*LINE, "--objective", "iwae", "--num-particles", "3")),
        ("mixture", ("mixture", *SMALL)),
    ):
        status, out, err = call(fit.command, *command, "--out", name)
        assert status == 0, err
        assert "log p(x_obs)" in out and "log p(x) " not in out and "50.5% of the pixels missing" in out
    return call


def test_evaluate_compare_and_fill(runs: Call, three_fitted: Path) -> None:
    recorded = read("vae/evaluation.json")
    config = read("vae/config.json")
    assert config["data"]["missing"] == 0.5 and recorded["missing"] == pytest.approx(0.505, abs=5e-4)
    page = Path("vae/report.html").read_text(encoding="utf-8")
    text, terms = page.split('<h2 id="terms">')
    assert "log p(x_obs)" in text and "log p(x)" not in text and "each with probability 0.5" in text
    assert "log p(x): Log" in re.sub("</dt>", ": ", re.sub("<(?!/dt>)[^>]*>", "", terms)) and "x_obs" in terms

    # The same numbers again, and by hand.
    status, out, _ = runs(evaluate.command, "vae", "--num-images", "30")
    assert status == 0 and "log p(x_obs)" in out
    run = ppl_gen.Run.open("vae")
    x = run.data.targets("test")[:30]
    assert x.isnan().any() and run.evaluation is not None
    z = torch.randn(20_000, 1, 1)
    with torch.no_grad():
        logits = run.model.decoder(z)  # type: ignore[operator]
    pixels = torch.distributions.Bernoulli(logits=logits).log_prob(x.nan_to_num(0))
    by_hand = torch.where(x.isnan(), 0.0, pixels).sum(-1).logsumexp(0) - np.log(len(z))
    assert run.evaluation.log_px.mean == pytest.approx(float(by_hand.mean()), abs=0.05)
    assert "log p(x_obs)" in repr(run)
    found = ppl_gen.log_marginal_likelihood(run.model, run.guide, x, num_samples=500)
    torch.testing.assert_close(found.log_px.float(), by_hand, atol=0.3, rtol=0)

    status, _, err = runs(fill.command, "vae", "--num-images", "20")
    filled = read("vae/fill.json")
    assert status == 0 and filled["hide"] == "missing", err
    # Every pixel of the baseline is that of the mean of observed pixels.
    x, missing = run.data.complete("test")[:20], run.data.targets("test")[:20].isnan()
    wrong = ((run.data.mean() > 0.5) != (x > 0.5)) & missing
    share = wrong.sum() / missing.sum()
    assert filled["error"]["mean_of_observed"]["wrong"]["mean"] == pytest.approx(float(share), abs=1e-6)
    assert 0 < filled["error"]["model"]["wrong"]["mean"] < 0.5 and filled["log_p_hidden"]["mean"] < 0
    assert Path("vae/figures/fill.png").is_file()
    assert runs(fill.command, "mixture", "--hide", "left", "--num-images", "5")[0] == 0
    assert read("mixture/fill.json")["hide"] == "left, and the missing"

    assert runs(evaluate.command, "vae", "--num-samples", "5")[0] == 0
    status, out, err = runs(compare.command, "vae", "mixture")
    assert status == 0 and "log p(x_obs)" in out and "log p(x) " not in out, err
    shutil.copytree(three_fitted / "vae", "whole")
    refused(runs, compare.command, "vae", "whole", words=["cannot be compared", "missing"])
    refused(runs, fill.command, "whole", "--hide", "missing", words=["no missing pixels"])
    refused(runs, evaluate.command, "vae", "--sandwich", "10", words=["needs complete images"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gan", *SMALL), ["--objective adversarial", "missing pixels"]),
        ((*LINE, "--objective", "wake-sleep"), ["--objective wake-sleep", "missing pixels"]),
        ((*LINE[:-6], "--missing", "1.5"), ["--missing 1.5", "share"]),
        (("vae", "--data", "digits", "--missing", "mask.npy"), ["mask.npy", "no such file"]),
        (("dependent.py:Dependent", *SMALL), ["MultivariateNormal", "independent of the others given z"]),
    ],
)
def test_refused_before_training(elsewhere: Path, call: Call, arguments: tuple[str, ...], words: list[str]) -> None:
    Path("dependent.py").write_text(DEPENDENT, encoding="utf-8")
    refused(call, fit.command, *arguments, words=words)


DEPENDENT = """
import pyro, pyro.distributions as dist, torch

class Dependent(torch.nn.Module):
    data_defaults = {"binarization": "none"}

    def __init__(self, data_dim):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(data_dim))

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.MultivariateNormal(self.loc + z, torch.eye(len(self.loc))), obs=x)
"""


@pytest.mark.slow
def test_resumed_to_the_same_bits(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {**FEW, "data": "digits", "train_size": 100, "missing": 0.3, "objective": "iwae"}
    how |= {"num_particles": 2}
    whole = ppl_gen.Run.fit("vae", out="whole", **how)
    with monkeypatch.context() as patched:
        interrupt_after(3, patched)
        with pytest.raises(KeyboardInterrupt):
            ppl_gen.Run.fit("vae", out="stopped", **how)
    resumed = ppl_gen.Run.open("stopped").resume(quiet=True)
    assert same_runs(whole, resumed)
    assert whole.evaluation is not None and resumed.evaluation is not None
    assert whole.evaluation.log_px.mean == resumed.evaluation.log_px.mean


def test_from_python(elsewhere: Path) -> None:
    """A mask beside an array, NaN, and an instance that is fitted to complete images afterwards."""
    images = (torch.rand(60, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    mask = torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    holes: Tensor = images.masked_fill(mask, torch.nan)
    known = ppl_gen.Run.fit("vae", data=images, missing=mask.numpy(), out="known", **FEW)
    unknown = ppl_gen.Run.fit("vae", data=holes, missing="nan", out="unknown", **FEW)
    assert known.data.test.values_known and not unknown.data.test.values_known
    torch.testing.assert_close(known.data.targets("test"), unknown.data.targets("test"), equal_nan=True)
    assert known.evaluation is not None and unknown.evaluation is not None
    assert known.evaluation.log_px.mean == unknown.evaluation.log_px.mean
    assert "error" in known.fill(num_images=3, quiet=True).summary
    filled = unknown.fill(num_images=3, quiet=True)
    assert "error" not in filled.summary and "log_px" not in filled.summary and "log p(visible)" in str(filled)
    assert torch.equal(filled.x.isnan(), ~filled.visible) and filled.imputation.mean.isfinite().all()

    again = ppl_gen.Run.open("unknown", data=holes)
    assert again.log_px(holes[:5], num_samples=50).log_px.isfinite().all()
    assert float(again.log_px(images[:5], num_samples=50).log_px.mean()) < float(again.log_px(holes[:5]).log_px.mean())
    with pytest.raises(BadInput, match="SHA-256"):
        _ = ppl_gen.Run.open("unknown", data=holes.flip(0)).model

    model = VAE((4, 4), latent_dim=1, hidden_dims=(4,))
    for name, given in (("first", {"data": holes, "missing": "nan"}), ("second", {"data": images})):
        ppl_gen.Run.fit(model, out=name, epochs=1, num_samples=5, quiet=True, **given)
        assert (type(model) is VAE) == (name == "second")
    with pytest.raises(BadInput, match="an array needs data=x"):
        ppl_gen.Run.fit("vae", data="digits", missing=np.ones((8, 8)), quiet=True)


@pytest.mark.slow
def test_a_file_that_has_changed_is_told(elsewhere: Path, call: Call) -> None:
    np.save("mask.npy", np.arange(64).reshape(8, 8) % 3 == 0)
    assert call(fit.command, *LINE[:-6], "--missing", "mask.npy", "--hidden-dims", "8", "--out", "run")[0] == 0
    assert len(read("run/config.json")["missing_sha256"]) == 64
    np.save("mask.npy", np.arange(64).reshape(8, 8) % 2 == 0)
    status, _, err = call(evaluate.command, "run", "--num-images", "5")
    assert status == 0 and "warning: mask.npy has changed" in err
