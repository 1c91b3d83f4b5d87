"""The estimators of log p(x) on the command line."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from ppl_gen import evaluate, fit
from ppl_gen.data.options import DataOptions
from ppl_gen.evaluation import estimating
from ppl_gen.experiment.config import Config
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]

QUICK = ("--data", "digits", "--train-size", "300", "--epochs", "3", "--num-samples", "50")

SHARPER = 8.0

ANNEALED = ("--estimator", "annealed", "--annealed.num-temperatures", "30", "--annealed.leapfrog-steps", "3")


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that no test changes, whose decoder has eight times the weights that it learned: posteriors that the guide
    is more than a nat away from, so that no estimate can be taken for another."""
    config = Config(
        "vae",
        {"hidden_dims": (16,), "latent_dim": 2},
        data=DataOptions("digits", train_size=300),
        training=TrainingOptions(epochs=3, learning_rate=0.01),
        num_samples=50,
    )
    run = Run.start(config, out=tmp_path_factory.mktemp("runs") / "vae", quiet=True).directory
    content = run.load_checkpoint()
    assert content is not None
    content[0]["last.model.decoder.2.weight"] *= SHARPER
    run.save_checkpoint(*content)
    return run.path


@pytest.fixture
def vae(elsewhere: Path, fitted: Path) -> Path:
    return Path(shutil.copytree(fitted, elsewhere / "vae"))


def _evaluation(run: Path) -> tuple[dict[str, Any], xarray.Dataset]:
    with xarray.open_dataset(run / "evaluation.nc", group="evaluation", engine="h5netcdf") as dataset:
        return json.loads((run / "evaluation.json").read_text(encoding="utf-8")), dataset.load()


def test_annealing_stands_beside_importance_sampling(vae: Path, call: Call) -> None:
    """A fit of two latent units is easy for both: they differ by no more than their errors on most images."""
    status, out, err = call(evaluate.command, "vae", "--num-images", "60", "--num-samples", "500", *ANNEALED)
    assert status == 0, err
    summary, images = _evaluation(vae)
    annealed, importance = summary["log_px"], summary["log_px_importance"]
    assert annealed["estimator"] == "annealed"
    assert annealed["num_temperatures"] == 30
    assert importance["num_samples"] == 500
    assert importance["mean"] > summary["elbo"]["mean"] + 1
    within = 4 * math.hypot(annealed["mc_se"], importance["mc_se"]) + abs(annealed["bias"]) + abs(importance["bias"])
    assert abs(annealed["mean"] - importance["mean"]) < min(within, 0.2)
    assert summary["sandwich"]["num_images"] == 100
    assert -0.1 < summary["sandwich"]["width"]["mean"] < 1
    assert summary["disagreement"]["mean"] == pytest.approx(annealed["mean"] - importance["mean"])
    assert summary["disagreement"]["fraction_beyond_errors"] < 0.1
    assert not annealed["at_least"] and not summary["gap"]["at_least"]  # quadrature vouches for both
    doubted = bool((images["khat"] > min(1 - 1 / math.log10(500), 0.7)).any())
    assert importance["at_least"] == (doubted or "importance" in summary.get("below", {}))
    exact = summary["log_px_quadrature"]["mean"]
    assert summary["gap"]["mean"] == pytest.approx(exact - summary["elbo"]["mean"])
    assert annealed["mean"] == pytest.approx(exact, abs=4 * annealed["mc_se"] + abs(annealed["bias"]))
    assert float(images["log_px"].mean()) == pytest.approx(annealed["mean"])
    assert float(images["log_px_importance"].mean()) == pytest.approx(importance["mean"])
    assert float(images["disagrees"].mean()) == pytest.approx(summary["disagreement"]["fraction_beyond_errors"])
    assert images.attrs["estimator"] == "annealed"
    for name, of in (("mc_se", "log_px_annealed"), ("bias", "log_px_annealed")):
        assert images[f"log_px_{name}"].values.tolist() == images[f"{of}_{name}"].values.tolist()
        assert images[f"log_px_{name}"].values.tolist() != images[f"log_px_importance_{name}"].values.tolist()
    for entry, of in ((annealed, "log_px_annealed"), (importance, "log_px_importance"), (summary["elbo"], "elbo")):
        assert entry["mc_se"] == pytest.approx(float(np.sqrt((images[f"{of}_mc_se"] ** 2).sum()) / 60), rel=1e-5)
        assert entry["se"] == pytest.approx(float(images[of].std(ddof=1)) / math.sqrt(60), rel=1e-5)
    assert not images["untrusted"].any()  # k-hat says nothing of chains
    for said in (
        "annealed, 16 chains x 30 temperatures from the prior",
        "on 100 images from the model",
        "beyond their",
    ):
        assert said in out


def test_annealing_from_the_guide_without_bounds(vae: Path, call: Call) -> None:
    more = ("--annealed.start", "guide", "--annealed.schedule", "linear", "--sandwich", "0")
    status, out, err = call(evaluate.command, "vae", "--num-images", "5", *ANNEALED, *more)
    assert status == 0, err
    summary, _ = _evaluation(vae)
    assert "sandwich" not in summary
    assert summary["gap"]["of"] == "quadrature" and not summary["log_px"]["at_least"]
    assert "temperatures from the guide" in out


def test_prior(vae: Path, call: Call) -> None:
    status, out, err = call(
        evaluate.command, "vae", "--num-images", "60", "--num-samples", "4000", "--estimator", "prior"
    )
    assert status == 0, err
    summary, images = _evaluation(vae)
    assert summary["log_px"]["estimator"] == "prior"
    prior, importance = summary["log_px"], summary["log_px_importance"]
    assert importance["mean"] > summary["elbo"]["mean"] + 1
    within = 4 * math.hypot(prior["mc_se"], importance["mc_se"]) + abs(prior["bias"]) + abs(importance["bias"])
    assert abs(prior["mean"] - importance["mean"]) < min(within, 0.2)
    assert float(images["log_px_prior"].mean()) == pytest.approx(summary["log_px"]["mean"])
    assert summary["gap"]["mean"] == pytest.approx(summary["log_px_quadrature"]["mean"] - summary["elbo"]["mean"])
    assert "importance samples from the prior" in out
    again = ("--num-images", "5", "--num-samples", "500", "--prior-share", "1")
    status, out, err = call(evaluate.command, "vae", *again)
    assert status == 0, err
    assert "S = 500 importance samples from the prior" in out
    assert _evaluation(vae)[0]["log_px_mixed"]["proposal"]["guides"] == []


def test_proposals(vae: Path, call: Call) -> None:
    refit = (
        "--init-from",
        "vae",
        "--refit-guide",
        "student-t",
        "--epochs",
        "1",
        "--num-samples",
        "20",
        "--out",
        "other",
    )
    assert call(fit.command, *refit)[0] == 0
    more = ("--prior-share", "0.1", "--temperature", "1.2", "--proposals", "other")
    status, out, err = call(evaluate.command, "vae", "--num-images", "60", "--num-samples", "1000", *more)
    assert status == 0, err
    summary, images = _evaluation(vae)
    proposal = {"prior_share": 0.1, "temperature": 1.2, "guides": ["own", "other"]}
    assert summary["log_px"]["estimator"] == "quadrature"
    assert summary["log_px_mixed"]["proposal"] == proposal
    mixed, importance = summary["log_px_mixed"], summary["log_px_importance"]
    assert importance["mean"] > summary["elbo"]["mean"] + 1
    within = 4 * math.hypot(mixed["mc_se"], importance["mc_se"]) + abs(mixed["bias"]) + abs(importance["bias"])
    assert abs(mixed["mean"] - importance["mean"]) < min(within, 0.1)
    assert float(images["log_px_mixed"].mean()) == pytest.approx(summary["log_px_mixed"]["mean"])
    assert "from own, other, temperature 1.2, 10% prior" in out


def test_what_proposals_cannot_have_is_said_before_any_work(
    vae: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(*arguments: Any) -> None:
        raise AssertionError("importance sampling has begun")

    fitted = ("belief-net", "--guide", "bernoulli", "--latent-dim", "3", *QUICK, "--out", "discrete")
    assert call(fit.command, *fitted)[0] == 0
    monkeypatch.setattr(estimating, "importance_estimate", begun)
    for run, more, words in (
        ("discrete", ("--temperature", "1.3"), "--temperature 1.3: needs latent sites that are continuous"),
        ("vae", ("--num-samples", "3", "--prior-share", "0.1"), "--num-samples 3: too few"),
    ):
        status, _, err = call(evaluate.command, run, "--num-images", "5", *more)
        assert status == 2 and words in err, err


OWN_GUIDE = """
from ppl_gen.guides.normal import Normal


class {name}(Normal):
    pass
"""


def test_proposals_with_guides_of_ones_own(vae: Path, call: Call) -> None:
    """Two classes in two files; each must be named again."""
    for name in ("One", "Other"):
        Path(f"{name.lower()}.py").write_text(OWN_GUIDE.format(name=name))
        refit = ("--init-from", "vae", "--refit-guide", f"{name.lower()}.py:{name}", "--epochs", "1")
        status, _, err = call(fit.command, *refit, "--num-samples", "20", "--out", name.lower())
        assert status == 0, err
    more = ("--guide", "one.py:One", "--num-images", "10", "--proposals", "other")
    status, _, err = call(evaluate.command, "one", *more)
    assert status == 2
    assert "name it again: --proposal-guides other.py:Other" in err
    status, out, err = call(evaluate.command, "one", *more, "--proposal-guides", "other.py:Other")
    assert status == 0, err
    assert "from own, other" in out
    # Nor does a run with a guide of the package's own need --guide.
    status, out, err = call(evaluate.command, "vae", *more[2:], "--proposal-guides", "other.py:Other")
    assert status == 0, err


def test_closed_form_beside_the_others(elsewhere: Path, call: Call) -> None:
    assert call(fit.command, "factor-analysis", *QUICK, "--latent-dim", "4", "--out", "fa")[0] == 0
    status, out, err = call(evaluate.command, "fa", "--num-images", "20", *ANNEALED)
    assert status == 0, err
    summary, _ = _evaluation(elsewhere / "fa")
    assert summary["log_px"]["estimator"] == "annealed"
    exact = summary["log_px_exact"]["mean"]
    assert summary["log_px_importance"]["mean"] == pytest.approx(exact, abs=1e-3)
    assert summary["gap"]["mean"] == pytest.approx(exact - summary["elbo"]["mean"])
    assert out.index("exact") < out.index("annealed, 16 chains")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--estimator", "annealed", "--prior-share", "0.1"), "--prior-share, --temperature and --proposals need"),
        (("--prior-share", "2"), "--prior-share 2.0: must be from 0 to 1"),
        (("--temperature", "0"), "--temperature 0.0: must be above 0"),
        (("--temperature", "inf"), "--temperature inf: must be a finite number"),
        (("--gaps", "--prior-share", "0.5"), "--gaps: needs --estimator importance or annealed"),
        (("--proposals", "nowhere"), "nowhere"),
        (("--sandwich", "-1"), "--sandwich -1"),
        (("--sandwich", "7", "--gaps"), "--gaps: leave out --sandwich 7"),
        (("--annealed.num-chains", "8"), "--annealed.* need --estimator annealed"),
        (("--annealed.num-chains", "0"), "--annealed.num-chains 0"),
        (("--annealed.acceptance", "1"), "--annealed.acceptance 1.0: must be between 0 and 1"),
        (("--num-samples", "2", "--prior-share", "0.1"), "too few"),
    ],
)
def test_bad_options(vae: Path, call: Call, options: tuple[str, ...], message: str) -> None:
    before = (vae / "evaluation.json").read_bytes()
    status, _, err = call(evaluate.command, "vae", *options)
    assert status == 2
    assert message in err
    assert (vae / "evaluation.json").read_bytes() == before


def test_annealing_needs_one_continuous_latent(elsewhere: Path, call: Call) -> None:
    assert call(fit.command, "mixture", *QUICK, "--num-components", "3", "--out", "mixture")[0] == 0
    status, _, err = call(evaluate.command, "mixture", "--estimator", "annealed")
    assert status == 2
    assert "continuous and unbounded" in err
    status, _, err = call(evaluate.command, "mixture", "--prior-share", "0.2")
    assert status == 2
    assert "samples no z" in err
    two = ("hierarchical-vae", *QUICK, "--latent-dims", "3", "2", "--hidden-dims", "8", "8", "--out", "two")
    assert call(fit.command, *two)[0] == 0
    status, _, err = call(evaluate.command, "two", "--estimator", "annealed")
    assert status == 2
    assert "one latent site" in err


TWO_MODES = """
import pyro, torch
import pyro.distributions as dist
from torch import nn


class Model(nn.Module):  # x_1 = (1 + z)^2 / 10 and a little noise; the other pixels are noise alone
    def __init__(self, data_dim):
        super().__init__()
        self.data_dim, self.unused = data_dim, nn.Parameter(torch.zeros(1))

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            mean = torch.cat([(1 + z).square() / 10, torch.zeros(*z.shape[:-1], self.data_dim - 1)], -1)
            return pyro.sample("x", dist.Normal(mean + 0 * self.unused, 0.03).to_event(1), obs=x)


class Lesser(nn.Module):
    sign = -1

    def __init__(self, data_dim):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def guide(self, x):
        root = (10 * x[:, :1]).clamp(min=0.1).sqrt()
        with pyro.plate("data", len(x)):
            loc = (self.sign * root - 1) * (1 - 1 / (1 + (root / 0.15) ** 2)) + 0 * self.unused
            pyro.sample("z", dist.Normal(loc, 0.18 / root).to_event(1))


class Greater(Lesser):
    sign = 1
"""


def test_the_default_evaluation_sees_the_mode_that_the_guide_misses(elsewhere: Path, call: Call) -> None:
    """Two guides that differ in the mode that they sit in, 4.4 nats apart: k-hat trusts both. By one command without
    options, only the lesser's log p(x) reads at least."""
    Path("own.py").write_text(TWO_MODES)
    noise = np.random.default_rng(0)
    x = np.zeros((60, 1, 4), np.float32)
    x[:, 0, 0] = 0.48 + 0.03 * noise.standard_normal(60)
    x[:, 0, 1:] = np.abs(0.03 * noise.standard_normal((60, 3)))
    np.savez("x.npz", train=x, test=x)
    found = {}
    for name in ("Lesser", "Greater"):
        options = ("own.py:Model", "--guide", f"own.py:{name}", "--data", "x.npz", "--binarization", "none")
        status, out, err = call(fit.command, *options, "--epochs", "1", "--num-samples", "1000", "--out", name)
        assert status == 0, err
        found[name] = (*_evaluation(Path(name)), out)
    lesser, images, out = found["Lesser"]
    greater = found["Greater"][0]
    assert greater["log_px"]["mean"] - lesser["log_px"]["mean"] == pytest.approx(4.4, abs=0.2)
    for summary, missed in ((lesser, True), (greater, False)):
        assert summary["khat"]["fraction_fine"] == 1
        assert summary["log_px"]["at_least"] == missed
        assert summary["gap"]["at_least"] == missed
        assert summary["second_opinion"]["at_least"] == missed
        assert summary["second_opinion"]["num_samples"] == 50
    assert lesser["gap"]["mean"] > greater["gap"]["mean"] + 1
    assert (
        lesser["second_opinion"]["together_beyond_errors"]
        and "above importance sampling over all images together" in out
    )
    assert {"log_px_second_opinion", "blind", "largest_weight"} <= set(images)


def test_evaluate_command(finished: Path, call: Call) -> None:
    before = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    arguments = (finished, "--split", "validation", "--num-images", "40", "--num-samples", "25", "--checkpoint", "best")
    status, out, _ = call(evaluate.command, *arguments)
    assert status == 0
    summary = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    assert (summary["split"], summary["num_images"], summary["checkpoint"]) == ("validation", 40, "best")
    assert summary["log_px"]["num_samples"] == 25
    for words in ("ELBO", "log p(x)", "gap", "k-hat", "40 validation images of digits", "±"):
        assert words in out
    assert call(evaluate.command, finished)[0] == 0
    again = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in before.items() if k != "seconds"}


def test_gaps_command(vae: Path, call: Call) -> None:
    """Prints the gaps and writes them; the evaluation stays."""
    before = (vae / "evaluation.json").read_text(encoding="utf-8")
    status, out, err = call(evaluate.command, "vae", "--gaps", "--num-images", "2", "--num-samples", "50")
    assert status == 0 and "approximation gap" in out and "amortization gap" in out, err
    assert (vae / "evaluation.json").read_text(encoding="utf-8") == before
    assert json.loads((vae / "gaps.json").read_text(encoding="utf-8"))["contexts"]["num_images"] == 2
