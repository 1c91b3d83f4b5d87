"""The mixture of Bernoullis and the sigmoid belief net, as models and as commands."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from safetensors.torch import load_file

from ppl_gen import evaluate, fit
from ppl_gen.guides.bernoulli import Bernoulli
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.inference.exact import exact_log_px, state_posterior
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.pair import Pair
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.mixture import Mixture
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]
SMALL = ("--data", "digits", "--train-size", "150", "--epochs", "2", "--num-samples", "30")


@pytest.mark.parametrize("make", [lambda: Mixture(7, num_components=3), lambda: BeliefNet(7, latent_dim=3)])
def test_model_is_prior_times_likelihood(make: Any) -> None:
    model = make()
    x = torch.bernoulli(torch.full((5, 7), 0.5))
    with evaluating(model):
        terms = Pair.read(model, Enumerated(), x).terms(x, num_samples=4)
        z = terms.latents["z"]
        z = z if isinstance(model, BeliefNet) else z.squeeze(-1).long()
        torch.testing.assert_close(terms.log_likelihood, model.likelihood(z).log_prob(x))
        torch.testing.assert_close(terms.log_prior, model.prior().log_prob(z).expand(4, 5))
    assert model.model(n=6).shape == (6, 7)


def test_guide_is_its_posterior() -> None:
    model, x = BeliefNet(7, latent_dim=3), torch.bernoulli(torch.full((5, 7), 0.5))
    guide = Bernoulli(7, torch.full((7,), 0.5), 3, "z", hidden_dims=(4,))
    with evaluating(model, guide):
        terms = Pair.read(model, guide, x).terms(x, num_samples=4, analytic_kl=True)
        q = guide.posterior(guide.encode(x))
        torch.testing.assert_close(terms.log_guide, q.log_prob(terms.latents["z"]))
        torch.testing.assert_close(terms.kl, torch.distributions.kl_divergence(q, model.prior()).expand(4, 5))


def test_before_training() -> None:
    """The mixture starts at fair coins, 784 log 2 = 543.4 nats, but for the faint images of its components; the belief
    net at the mean image."""
    torch.manual_seed(0)
    coins = 784 * math.log(2)
    examples = torch.bernoulli(torch.full((50, 784), 0.13))
    mixture = Mixture(784, examples, num_components=20)
    # Log-odds w add (x - 1/2) w - w^2 / 8 to a pixel. An image that is no component's: -1.0, by w^2, and +0.7, by the
    # average over components. The 20 of 50 whose own there is: (x - 1/2) w sums to 0.3 * 784 * 0.13 * 0.87 = 26.6, less
    # log 20 for the others and 1.0. In the mean 8.5, with a standard deviation of 0.15 over seeds.
    assert exact_log_px(mixture, examples).mean().item() + coins == pytest.approx(8.5, abs=1)
    # Without examples w is noise of standard deviation 0.3: -784 * 0.3^2 / 8 = -8.8, and what the luckiest of 20 gain;
    # over seeds -3.6 with a standard deviation of 1.0.
    assert exact_log_px(Mixture(784, num_components=20), examples).mean().item() + coins == pytest.approx(-3.6, abs=5)
    more = Mixture(784, examples, num_components=120)  # more components than examples: no two alike
    assert len(torch.unique(more.weight.detach(), dim=0)) == 120
    mean = torch.full((784,), 0.13)
    likelihood = torch.distributions.Bernoulli(mean).log_prob(examples).sum(-1).mean().item()
    # Weights of 0.001 change it by 0.015 nats, the standard deviation over seeds.
    net = BeliefNet(784, mean, init_scale=0.001)
    assert exact_log_px(net, examples).mean().item() == pytest.approx(likelihood, abs=0.1)
    dark = BeliefNet(784, mean, init_scale=0.001, init_output_bias=False)
    assert exact_log_px(dark, examples).mean().item() == pytest.approx(-coins, abs=0.1)


def test_components_are_found() -> None:
    """Three prototypes, flipped at a rate of 5 %: the mixture reaches the true model's log-likelihood to 0.2 nats and
    leaves no component empty."""
    torch.manual_seed(0)
    prototypes = torch.bernoulli(torch.full((3, 30), 0.5))
    which = torch.randint(3, (600,))
    x = torch.bernoulli(prototypes[which] * 0.9 + 0.05)
    model = Mixture(30, x, num_components=3)
    pair = Pair.read(model, Enumerated(), x)
    from ppl_gen.inference.objectives import construct
    from ppl_gen.inference.objectives.loss import bind

    elbo = bind(construct("elbo"), pair, x)
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(150):
        adam.zero_grad()
        with pyro.validation_enabled(False):
            (elbo.differentiable_loss(model.model, None, x) / 600).backward()
        adam.step()
    truth = torch.where(prototypes[:, None] == x, 0.95, 0.05).log().sum(-1).logsumexp(0) - math.log(3)
    assert exact_log_px(model, x).mean() > truth.mean() - 0.2
    _, posterior = state_posterior(model, x)
    agreement = [(posterior.argmax(0)[which == k]).mode().values.item() for k in range(3)]
    assert sorted(agreement) == [0, 1, 2]


def test_commands(elsewhere: Path, call: Call) -> None:
    status, out, err = call(fit.command, "mixture", "--num-components", "5", *SMALL, "--out", "m")
    assert status == 0, err
    assert "   exact\n" in out and "components in use" in out and "a step sums 5 latent states" in out
    summary = json.loads(Path("m/evaluation.json").read_text(encoding="utf-8"))
    assert summary["log_px"]["estimator"] == "exact" and summary["elbo"]["mean"] == summary["log_px"]["mean"]
    assert not {"kl", "gap", "iwae", "khat"} & summary.keys()
    assert summary["components"]["of"] == 5
    names = {path.name for path in Path("m/figures").iterdir()}
    assert names == {"learning_curves.png", "samples.png", "through_training.png", "components.png"}
    config = json.loads(Path("m/config.json").read_text(encoding="utf-8"))
    assert config["guide"] == "enumerated" and config["training"]["learning_rate"] == 0.2
    first = json.loads(Path("m/metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["train"].keys() == {"elbo"} and first["train"]["elbo"] == pytest.approx(-64 * math.log(2), abs=3)

    status, out, err = call(evaluate.command, "m", "--estimator", "importance", "--num-samples", "40")
    assert status == 0, err
    assert "40 importance samples from the prior" in out and "   exact\n" in out
    both = json.loads(Path("m/evaluation.json").read_text(encoding="utf-8"))
    assert both["log_px"]["estimator"] == "importance" and both["proposal"] == "prior"
    assert both["log_px_exact"]["mean"] == summary["log_px"]["mean"]
    assert both["log_px"]["mean"] < both["log_px_exact"]["mean"]


def test_guide_beside_the_exact_value(elsewhere: Path, call: Call) -> None:
    arguments = (
        "belief-net",
        "--latent-dim",
        "4",
        "--guide",
        "bernoulli",
        "--objective",
        "vimco",
        "--num-particles",
        "3",
    )
    status, out, err = call(fit.command, *arguments, *SMALL, "--out", "b")
    assert status == 0, err
    assert "30 importance samples" in out and "   exact\n" in out
    summary = json.loads(Path("b/evaluation.json").read_text(encoding="utf-8"))
    assert summary["log_px"]["estimator"] == "exact" and summary["log_px_importance"]["num_samples"] == 30
    assert summary["gap"]["mean"] == pytest.approx(summary["log_px"]["mean"] - summary["elbo"]["mean"])
    assert summary["gap"]["at_least"] is False and summary["gap"]["mean"] > 0
    names = {path.name for path in Path("b/figures").iterdir()}
    assert {"weights.png", "posterior.png", "reconstructions.png", "how_far.png"} <= names
    import xarray

    with xarray.open_dataset("b/evaluation.nc", group="evaluation") as dataset:
        assert (dataset["log_px"] == dataset["log_px_exact"]).all()
        assert float(dataset["log_px_importance"].mean()) == pytest.approx(summary["log_px_importance"]["mean"])
    status, out, err = call(evaluate.command, "b", "--estimator", "exact", "--num-images", "20")
    assert status == 0, err


def test_the_same_numbers_after_an_interrupt(elsewhere: Path) -> None:
    """The score function draws its samples from torch's generator and its baseline is the guide's: a run that stops at
    an epoch and goes on ends with the weights of one that does not."""
    from ppl_gen.data.options import DataOptions
    from ppl_gen.experiment.config import Config
    from ppl_gen.experiment.options import TrainingOptions

    def run(name: str, stop: bool) -> dict[str, Any]:
        config = Config(
            "belief-net",
            {"latent_dim": 4},
            "bernoulli",
            {},
            DataOptions("digits", train_size=120),
            TrainingOptions(epochs=3, batch_size=50),
            num_samples=10,
        )
        if stop:

            def interrupt(_: Run, line: dict[str, Any]) -> None:
                if line["epoch"] == 2:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                Run.start(config, out=name, quiet=True, on_epoch=interrupt)
            return Run.open(name).resume(quiet=True).directory.read_json("evaluation.json") or {}
        return Run.start(config, out=name, quiet=True).directory.read_json("evaluation.json") or {}

    whole, resumed = run("whole", False), run("resumed", True)
    for key in ("elbo", "log_px", "log_px_importance"):
        assert whole[key] == resumed[key]
    ours, theirs = (load_file(f"{name}/checkpoint.safetensors") for name in ("whole", "resumed"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for part in ("model", "guide", "guide.baseline"):
        assert any(name.startswith(f"last.{part}.") for name in ours), sorted(ours)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mixture", "--num-components", "0"), "--num-components 0: must be at least 1"),
        (("mixture", "--init-scale", "0"), "--init-scale 0.0: must be above 0"),
        (("mixture", "--guide", "normal"), "fails on|does not fit|event shape"),
        (("mixture", "--num-particles", "3"), "nothing is sampled; use elbo with 1 particle"),
        (("mixture", "--kl-warmup", "2"), "--kl-warmup 2: scales the KL term"),
        (("belief-net", "--latent-dim", "0"), "--latent-dim 0: must be at least 1"),
        (("belief-net", "--latent-dim", "40"), "1,099,511,627,776 latent states.*GB are free.*bernoulli"),
        (("belief-net", "--latent-dim", "14", "--max-hours", "0.000000001"), "more than --max-hours 1e-09; use fewer"),
        (("belief-net", "--max-hours", "0"), "--max-hours 0.0: must be above 0"),
        (("belief-net", "--guide", "bernoulli", "--objective", "vimco"), "vimco needs at least 2"),
        (("belief-net", "--guide", "bernoulli", "--objective", "elbo-analytic-kl"), "cannot be reparametrized"),
        (("belief-net", "--guide", "bernoulli", "--guide.hidden-dims", "0"), "every layer needs"),
        (("vae", "--guide", "enumerated"), "is not enumerated: this needs"),
        (("vae", "--guide", "bernoulli"), "does not fit|fails|support"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, elsewhere: Path, call: Call) -> None:
    import re

    status, _, err = call(fit.command, *arguments, *SMALL, "--out", "r")
    assert status == 2, err
    assert len(err.strip().splitlines()) == 1 and re.search(message, err), err
    assert not Path("r").exists()


def test_exact_needs_finite_support(elsewhere: Path, call: Call) -> None:
    assert call(fit.command, "vae", "--hidden-dims", "8", *SMALL, "--out", "v")[0] == 0
    status, _, err = call(evaluate.command, "v", "--estimator", "exact")
    assert status == 2 and "has no finite support" in err


def test_a_guide_of_ones_own_is_enumerated_too(elsewhere: Path) -> None:
    """The exact value is used with whatever guide of a model that can be enumerated."""
    from ppl_gen.data.options import DataOptions
    from ppl_gen.experiment.config import Config
    from ppl_gen.experiment.options import TrainingOptions

    Path("mine.py").write_text(
        "import pyro, torch\nimport pyro.distributions as dist\nfrom torch import nn\n"
        "class Mine(nn.Module):\n"
        "    def __init__(self, data_dim):\n        super().__init__()\n        self.net = nn.Linear(data_dim, 3)\n"
        "    def guide(self, x):\n        with pyro.plate('data', len(x)):\n"
        "            pyro.sample('z', dist.Bernoulli(logits=self.net(x)).to_event(1))\n"
    )
    config = Config(
        "belief-net",
        {"latent_dim": 3},
        "mine.py:Mine",
        {},
        DataOptions("digits", train_size=100),
        TrainingOptions(epochs=1),
        num_samples=20,
    )
    summary = Run.start(config, out="own", quiet=True).directory.read_json("evaluation.json")
    assert summary is not None and summary["log_px"]["estimator"] == "exact" and summary["gap"]["mean"] > 0
