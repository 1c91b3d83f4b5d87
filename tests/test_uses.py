"""What a model with a log p(x) is used for: filling in, telling spliced images, responsibilities. Truth is summed out
by brute force in float64."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pairs import ExactGuide, LinearGaussian
from torch import Tensor, nn

import ppl_gen
from ppl_gen import fill, fit, responsibilities, splice
from ppl_gen.core.errors import BadInput
from ppl_gen.data.options import DataOptions
from ppl_gen.evaluation import explaining, filling, splicing
from ppl_gen.experiment.config import Config, Given
from ppl_gen.experiment.fitted import Assembled
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.guides.bernoulli import Bernoulli
from ppl_gen.inference.imputation import exact_imputation, importance_imputation, visible_part
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.mixture import Mixture
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]
F64 = torch.float64
PIXELS = 7
VISIBLE = torch.tensor([True, False, True, True, False, False, True])


class StockMixture(Mixture):
    """With Pyro's own Bernoulli, which has no `select`."""

    def likelihood(self, z: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=self.weight[z] + self.bias).to_event(1)


def _model(name: str) -> Any:
    model: Any
    if name == "belief-net":
        model = BeliefNet(PIXELS, latent_dim=3)
    else:
        model = {"mixture": Mixture, "stock": StockMixture}[name](PIXELS, num_components=3)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 1.5)
    return model


def _joint(model: Any, x: Tensor) -> Tensor:
    """p(x, z), [states, images], state by state and pixel by pixel."""
    if isinstance(model, BeliefNet):
        states = [torch.tensor(bits, dtype=F64) for bits in itertools.product([0.0, 1.0], repeat=3)]
        on = model.logits.sigmoid()
        rows = [(torch.where(z == 1, on, 1 - on).prod(), (z @ model.weight + model.bias).sigmoid()) for z in states]
    else:
        weights = (0.1 * model.level).softmax(0)
        rows = [(weights[k], (model.weight[k] + model.bias).sigmoid()) for k in range(3)]
    return torch.stack([weight * torch.where(x == 1, p, 1 - p).prod(-1) for weight, p in rows]).detach()


def _conditional(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x_h | x_v) [images] and E[x_h | x_v] [images, hidden]: sums over all z and all hidden pixels."""
    hidden = int((~VISIBLE).sum())
    values = torch.tensor(list(itertools.product([0.0, 1.0], repeat=hidden)), dtype=F64)
    log_probs, means = [], []
    for image in x:
        completed = image.repeat(len(values), 1)
        completed[:, ~VISIBLE] = values
        p = _joint(model, completed).sum(0)
        log_probs.append((_joint(model, image[None]).sum() / p.sum()).log())
        means.append(p @ values / p.sum())
    return torch.stack(log_probs), torch.stack(means)


@pytest.mark.parametrize("name", ["mixture", "stock", "belief-net"])
def test_exact_completion_is_the_sum_over_everything_hidden(name: str) -> None:
    model, x = _model(name), torch.bernoulli(torch.full((6, PIXELS), 0.5, dtype=F64))
    log_prob, mean = _conditional(model, x)
    draws = 4000
    found = exact_imputation(model, x, VISIBLE, draws)
    torch.testing.assert_close(found.log_prob, log_prob)
    torch.testing.assert_close(found.mean[:, ~VISIBLE], mean)
    assert torch.equal(found.mean[:, VISIBLE], x[:, VISIBLE])
    assert found.draws.shape == (draws, 6, PIXELS) and found.importance is None
    assert torch.equal(found.draws[:, :, VISIBLE], x[:, VISIBLE].expand(draws, -1, -1))
    # Frequencies of the draws, 18 of them, and correlations between hidden pixels: beyond 4.5 standard errors once in
    # 4,000 runs of this test.
    drawn = found.draws[:, :, ~VISIBLE]
    assert ((drawn.mean(0) - mean).abs() <= 4.5 * (mean * (1 - mean) / draws).sqrt()).all()
    both = x.clone()
    product = drawn[:, 0, 0] * drawn[:, 0, 1]
    hidden = (~VISIBLE).nonzero().flatten()[:2]
    both[0, hidden] = 1.0
    rest = (~VISIBLE).nonzero().flatten()[2:]
    total = 0.0
    for value in (0.0, 1.0):
        both[0, rest] = value
        total += float(_joint(model, both[:1]).sum())
    expected = total / float(_joint(model, x[:1]).sum() / log_prob[0].exp())
    assert abs(float(product.mean()) - expected) <= 4.5 * (expected * (1 - expected) / draws) ** 0.5


@pytest.mark.parametrize("name", ["mixture", "belief-net"])
def test_states_of_visible_pixels(name: str) -> None:
    model, x = _model(name), torch.bernoulli(torch.full((6, PIXELS), 0.5, dtype=F64))
    found = exact_imputation(model, x, VISIBLE)
    states = model.prior().enumerate_support(expand=False)
    likelihood = model.likelihood(states.unsqueeze(1)).select(VISIBLE)
    log_joint = likelihood.log_prob(x[:, VISIBLE]) + model.prior().log_prob(states).unsqueeze(-1)
    probabilities = log_joint.softmax(0)
    mean = torch.einsum("ki,kd->id", probabilities, model.likelihood(states).mean)
    torch.testing.assert_close(found.mean[:, ~VISIBLE], mean[:, ~VISIBLE])


def test_importance_completion_of_a_belief_net() -> None:
    """Three images and four standard errors: a false alarm once in 5,000 seeds."""
    model, x = _model("belief-net"), torch.bernoulli(torch.full((3, PIXELS), 0.5, dtype=F64))
    guide = Bernoulli(PIXELS, torch.full((PIXELS,), 0.5), 3, "z").double()
    log_prob, mean = _conditional(model, x)
    filler = torch.full((PIXELS,), 0.5, dtype=F64)
    found = importance_imputation(model, guide, x, VISIBLE, filler, 20_000, 2)
    assert found.importance is not None
    whole, seen = found.importance
    error = (whole.log_px_mc_var + seen.log_px_mc_var).sqrt()
    assert ((found.log_prob - log_prob).abs() <= 4 * error).all() and (error < 0.1).all()
    # Self-normalized weights at an effective sample size: E[x] within 4.5 of the errors of as many draws.
    spread = (mean * (1 - mean) / seen.ess[:, None]).sqrt()
    assert ((found.mean[:, ~VISIBLE] - mean).abs() <= 4.5 * spread).all()
    assert found.draws.shape == (2, 3, PIXELS)


def test_importance_completion_of_a_linear_gaussian() -> None:
    """The proposal is refined, since z can be reparametrized; p(x_h | x_v) is a Gaussian in closed form. Four images
    and four standard errors: a false alarm once in 4,000 seeds."""
    model = LinearGaussian()
    guide = ExactGuide(model, widen=1.3)
    visible = torch.tensor([True, True, False, True, False])
    x = model.model(n=4).detach()
    filler = torch.zeros(5, dtype=F64)
    found = importance_imputation(model, guide, x, visible, filler, 5000)
    covariance = (model.weight @ model.weight.T + model.noise**2 * torch.eye(5, dtype=F64)).detach()
    seen = dist.MultivariateNormal(torch.zeros(3, dtype=F64), covariance[visible][:, visible])
    expected = model.log_px(x).detach() - seen.log_prob(x[:, visible])
    assert found.importance is not None
    error = sum(estimates.log_px_mc_var for estimates in found.importance).sqrt()  # type: ignore[union-attr]
    assert ((found.log_prob - expected).abs() <= 4 * error).all() and (error < 0.05).all()
    mean = x[:, visible] @ torch.linalg.solve(covariance[visible][:, visible], covariance[visible][:, ~visible])
    torch.testing.assert_close(found.mean[:, ~visible], mean, atol=0.15, rtol=0)
    # Unrefined, the guide takes the filler for pixels; refined, its weights vary less.
    with torch.no_grad():
        q = guide.posterior(torch.where(visible, x, filler))
        z = q.sample(torch.Size((5000,)))
        part, pixels = visible_part(model.likelihood(z), x, visible)
        share = (model.prior().log_prob(z) + part.log_prob(pixels) - q.log_prob(z)).softmax(0)
    assert (found.importance[1].ess > 1.2 / share.square().sum(0)).all()


def test_pixels_that_depend_on_each_other_given_z_are_refused() -> None:
    likelihood = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
    with pytest.raises(BadInput, match="independent given z"):
        visible_part(likelihood, torch.zeros(2, 3), torch.tensor([True, False, True]))


# Masks -----------------------------------------------------------------------------------------------------------


def test_masks(tmp_path: Path) -> None:
    shape = (3, 5)
    seen = {side: filling.visible_pixels(side, shape).reshape(shape) for side in filling.SIDES}
    assert torch.equal(seen["left"], ~seen["right"]) and torch.equal(seen["top"], ~seen["bottom"])
    assert (~seen["left"]).sum(1).tolist() == [2, 2, 2] and (~seen["top"]).sum(1).tolist() == [5, 0, 0]
    random = filling.visible_pixels("random", (40, 40), 1)
    assert abs(random.double().mean().item() - 0.5) < 4 * 0.5 / 40  # once in 16,000 seeds
    assert torch.equal(random, filling.visible_pixels("random", (40, 40), 1))
    file = tmp_path / "mask.npy"
    for mask in ((~seen["left"]).numpy(), (~seen["left"]).int().numpy().ravel()):
        np.save(file, mask)
        assert torch.equal(filling.visible_pixels(str(file), shape), seen["left"].flatten())


# Spliced images --------------------------------------------------------------------------------------------------


def test_spliced_images_are_the_left_of_one_and_the_right_of_another() -> None:
    left, right = torch.zeros(2, 3, 5), torch.ones(2, 3, 5)
    spliced = splicing.splice(left.flatten(1), right.flatten(1), (3, 5)).reshape(2, 3, 5)
    assert (spliced[..., :2] == 0).all() and (spliced[..., 2:] == 1).all()


@pytest.mark.parametrize("counts", [[10] * 10, [50, 30, 20], [1, 1], [4, 1, 1, 2]])
def test_a_pair_has_two_classes(counts: list[int]) -> None:
    """Up to half of all images in one class."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    for seed in range(20):
        left, right = splicing.pair_up(labels, torch.Generator().manual_seed(seed))
        assert (labels[left] != labels[right]).all()
        assert sorted([*left.tolist(), *right.tolist()]) == list(range(len(labels)))


def test_too_many_of_one_class() -> None:
    with pytest.raises(BadInput, match="more than half"):
        splicing.pair_up(torch.tensor([0, 0, 0, 1]), torch.Generator())


def test_area_under_the_curve_and_its_error() -> None:
    """Scores N(0, 1) against N(1, 1): the area is Phi(1 / sqrt 2), and the error is the spread over repetitions."""
    rng = np.random.default_rng(0)
    found = np.array([splicing.roc_auc(rng.normal(1, 1, 120), rng.normal(0, 1, 80)) for _ in range(400)])
    area = dist.Normal(0.0, 1.0).cdf(torch.tensor(0.5**0.5)).item()
    assert abs(found[:, 0].mean() - area) < 4 * found[:, 0].std() / 20  # once in 16,000 seeds
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.15)  # 4 standard errors of a spread of 400


def test_false_alarms_are_as_many_as_asked_for() -> None:
    """Bounds of 4 binomial standard errors, once in 2,000 seeds over the 7 sizes and 2 bounds. With float32's ties."""
    rng = np.random.default_rng(1)
    natural, spliced = (-rng.gamma(2, 20, count).astype(np.float32).astype(float) for count in (400, 200))
    natural[:20] = natural[20:40]
    for rate in (0.05, 0.2):
        test = splicing.two_sample_test(natural, spliced - 15, rate, 2000, seed=2)
        bound = 4 * (rate * (1 - rate) / 2000) ** 0.5
        assert list(test["power"]) == ["1", "2", "5", "10", "20", "50", "100"]
        for size, entry in test["false_alarms"].items():
            assert abs(entry["mean"] - rate) <= bound + (0.005 if size == "1" else 0), (rate, size)
        power = [entry["mean"] for entry in test["power"].values()]
        assert power == sorted(power) and power[-1] == 1


def test_batches_are_no_larger_than_there_are_images() -> None:
    rng = np.random.default_rng(0)
    test = splicing.two_sample_test(rng.normal(size=24), rng.normal(size=12), 0.05, 10, seed=0)
    assert list(test["power"]) == ["1", "2", "5", "10"] and test["reference"] == 12


# Responsibilities ------------------------------------------------------------------------------------------------


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


# Commands --------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "mixture": {"model": "mixture", "guide": "enumerated", "model_options": {"num_components": 5}},
    "belief-net": {"model": "belief-net", "guide": "enumerated", "model_options": {"latent_dim": 3}},
    "vae": {"model_options": {"hidden_dims": (8,), "latent_dim": 2}},
}


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small run of each model."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in OPTIONS.items():
        data = DataOptions(data="digits", train_size=150)
        config = Config(**options, data=data, training=TrainingOptions(epochs=1), num_samples=20)
        Run.start(config, out=folder / name, quiet=True)
    return folder


@pytest.fixture
def here(elsewhere: Path, fitted: Path) -> Path:
    for name in OPTIONS:
        shutil.copytree(fitted / name, name)
    return elsewhere


def _read(path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", list(OPTIONS))
def test_splice(here: Path, call: Call, name: str) -> None:
    arguments = (name, "--num-images", "20", "--num-samples", "20", "--num-batches", "50")
    status, out, err = call(splice.command, *arguments)
    assert status == 0, err
    assert "ROC AUC" in out and "false alarms" in out
    found = _read(f"{name}/splice.json")
    assert (found["num_natural"], found["num_spliced"]) == (40, 20)
    assert found["estimator"] == ("importance" if name == "vae" else "exact")
    assert ("num_samples" in found) == (name == "vae")
    assert 0 <= found["roc_auc"]["mean"] <= 1 and found["roc_auc"]["se"] > 0
    assert list(found["two_sample_test"]["power"]) == ["1", "2", "5", "10", "20"]
    assert Path(f"{name}/figures/spliced.png").stat().st_size and Path(f"{name}/figures/splice_power.png").is_file()
    before = Path(f"{name}/splice.json").read_bytes()
    assert call(splice.command, *arguments)[0] == 0
    assert Path(f"{name}/splice.json").read_bytes() == before  # the same seed


def test_splice_by_importance_agrees_with_exact(here: Path, call: Call) -> None:
    for estimator in ("exact", "importance"):
        arguments = ("mixture", "--num-images", "10", "--num-batches", "2", "--num-samples", "2000")
        assert call(splice.command, *arguments, "--estimator", estimator)[0] == 0
        found = _read("mixture/splice.json")
        assert found["estimator"] == estimator
        if estimator == "exact":
            exact = found["log_px"]
    for kind in ("natural", "spliced"):
        assert found["log_px"][kind]["mean"] == pytest.approx(exact[kind]["mean"], abs=0.2)


@pytest.mark.parametrize("name", list(OPTIONS))
@pytest.mark.parametrize("hide", ["left", "random", "mask.npy"])
def test_fill(here: Path, call: Call, name: str, hide: str) -> None:
    np.save("mask.npy", np.arange(64).reshape(8, 8) % 3 == 0)
    status, out, err = call(fill.command, name, "--hide", hide, "--num-images", "12", "--num-samples", "20")
    assert status == 0, err
    assert "log p(hidden | visible)" in out
    found = _read(f"{name}/fill.json")
    at_random = 64 - int(filling.visible_pixels("random", (8, 8), 0).sum())
    assert found["hidden_pixels"] == {"left": 32, "mask.npy": 22, "random": at_random}[hide]
    assert found["estimator"] == ("importance" if name == "vae" else "exact")
    difference = found["log_px"]["mean"] - found["log_px_visible"]["mean"]
    assert found["log_p_hidden"]["mean"] == pytest.approx(difference)
    assert ("ess" in found) == (name == "vae")
    bits = found["log_p_hidden"]["mean"] / -np.log(2) / found["hidden_pixels"]
    assert found["log_p_hidden"]["bits_per_hidden_pixel"] == pytest.approx(bits)
    assert found["independent_pixels"]["mean"] < 0
    assert Path(f"{name}/figures/fill.png").is_file()
    assert "Hidden pixels" in Path(f"{name}/report.html").read_text(encoding="utf-8")


def test_responsibilities(here: Path, call: Call) -> None:
    status, out, err = call(responsibilities.command, "mixture")
    assert status == 0, err
    assert "purity" in out and "chance" in out
    found = _read("mixture/responsibilities.json")
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
    assert found["components"] == {"in_use": in_use, "of": 5} == _read("mixture/evaluation.json")["components"]
    assert {path.name for path in Path("mixture/figures").iterdir()} >= {
        "components_by_label.png",
        "responsibilities.png",
    }


def test_without_labels(here: Path, call: Call) -> None:
    np.save("images.npy", np.random.default_rng(0).random((200, 12)) < 0.3)
    for model in ("mixture", "vae"):
        arguments = (model, "--data", "images.npy", "--epochs", "1", "--num-samples", "5", "--out", f"own-{model}")
        assert call(fit.command, *arguments)[0] == 0
    assert call(responsibilities.command, "own-mixture")[0] == 0
    assert "purity" not in _read("own-mixture/responsibilities.json")
    assert not Path("own-mixture/figures/components_by_label.png").exists()
    assert call(fill.command, "own-vae", "--num-images", "3", "--num-samples", "10")[0] == 0
    status, _, err = call(splice.command, "own-mixture")
    assert status == 2 and "has no labels" in err and err.count("\n") == 1
    status, _, err = call(fill.command, "own-mixture", "--hide", "top")
    assert status == 2 and "has no height" in err and err.count("\n") == 1


OWN = """
from ppl_gen.models.mixture import Mixture
from ppl_gen.models.vae import VAE


class Own(Mixture):
    pass


class Conditional(VAE):
    def model(self, x=None, y=None, *, n=1):
        return super().model(x, n=n)
"""


def test_a_model_of_your_own(here: Path, call: Call) -> None:
    """It is named again, a change of its file is told, and labels as an input are refused."""
    Path("own.py").write_text(OWN)
    small = ("--data", "digits", "--train-size", "150", "--epochs", "1", "--num-samples", "5")
    assert call(fit.command, "own.py:Own", *small, "--out", "own")[0] == 0
    assert call(fit.command, "own.py:Conditional", *small, "--latent-dim", "2", "--out", "conditional")[0] == 0
    reduced = {splice: ("--num-images", "10", "--num-batches", "5"), fill: (), responsibilities: ()}
    for module, options in reduced.items():
        status, _, err = call(module.command, "own", *options)
        assert status == 2 and "--model own.py:Own" in err
        assert call(module.command, "own", "--model", "own.py:Own", *options)[0] == 0
        status, _, err = call(module.command, "conditional", "--model", "own.py:Conditional", *options)
        assert status == 2 and "takes labels" in err and err.count("\n") == 1
    with open("own.py", "a") as file:
        file.write("# more\n")
    status, _, err = call(fill.command, "own", "--model", "own.py:Own")
    assert status == 0 and "warning: own.py:Own has changed" in err


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        *((module.command, ("nowhere",), ["nowhere", "no such run"]) for module in (fill, splice, responsibilities)),
        *((module.command, (), ["run directory"]) for module in (fill, splice, responsibilities)),
        *((module.command, ("vae", "--seed", "-1"), ["--seed -1"]) for module in (fill, splice, responsibilities)),
        *((module.command, ("vae", "--split", "tset"), ["tset"]) for module in (fill, splice, responsibilities)),
        (splice.command, ("vae", "--num-images", "9"), ["--num-images 9", "at least 10"]),
        (splice.command, ("vae", "--num-images", "76"), ["--num-images 76", "300"]),
        (splice.command, ("vae", "--num-samples", "0"), ["--num-samples 0"]),
        (splice.command, ("vae", "--num-batches", "0"), ["--num-batches 0"]),
        (splice.command, ("vae", "--false-alarm-rate", "1"), ["--false-alarm-rate 1"]),
        (splice.command, ("vae", "--false-alarm-rate", "nan"), ["--false-alarm-rate nan"]),
        (splice.command, ("vae", "--estimator", "exact"), ["--estimator exact", "no finite support"]),
        (splice.command, ("vae", "--estimator", "guess"), ["guess", "--estimator"]),
        (splice.command, ("vae", "--guide", "own.py:Guide"), ["own.py:Guide", "was fitted with normal"]),
        (fill.command, ("vae", "--num-images", "0"), ["--num-images 0"]),
        (fill.command, ("vae", "--num-images", "301"), ["--num-images 301", "300"]),
        (fill.command, ("vae", "--hide", "rihgt"), ["--hide rihgt", "did you mean 'right'"]),
        (fill.command, ("vae", "--hide", "nowhere.npy"), ["nowhere.npy", "no such file"]),
        (fill.command, ("vae", "--hide", "cut.npy"), ["cut.npy", "truncated"]),
        (fill.command, ("vae", "--hide", "wide.npy"), ["wide.npy", "(8, 9)", "(8, 8)"]),
        (fill.command, ("vae", "--hide", "grey.npy"), ["grey.npy", "true or 1"]),
        (fill.command, ("vae", "--hide", "words.npy"), ["words.npy", "true or 1"]),
        (fill.command, ("vae", "--hide", "all.npy"), ["all.npy", "every pixel"]),
        (fill.command, ("vae", "--hide", "none.npy"), ["none.npy", "no pixel"]),
        (responsibilities.command, ("vae",), ["has no components"]),
        (responsibilities.command, ("belief-net",), ["has no components"]),
        (responsibilities.command, ("mixture", "--num-images", "301"), ["--num-images 301", "300"]),
        (responsibilities.command, ("mixture", "--num-images", "3"), ["--num-images 3", "at least 10"]),
    ],
)
def test_bad_input(
    here: Path, call: Call, command: Callable[[list[str]], None], arguments: tuple[str, ...], words: list[str]
) -> None:
    Path("cut.npy").write_bytes(b"\x93NUMPY\x01")
    for name, array in (
        ("wide", np.ones((8, 9))),
        ("grey", np.full((8, 8), 0.5)),
        ("words", np.full((8, 8), "a")),
        ("all", np.ones((8, 8))),
        ("none", np.zeros((8, 8))),
    ):
        np.save(f"{name}.npy", array)
    before = sorted(here.rglob("*"))
    status, out, err = call(command, *arguments)
    assert status == 2
    assert err.count("\n") == 1 and err.startswith("error: "), err
    assert out == ""
    for word in words:
        assert word in err
    assert sorted(here.rglob("*")) == before


def test_filling_in_takes_a_guide_that_can_be_shown_another_image() -> None:
    """A guide without encode and posterior, and a model with two latent sites, are refused in a sentence."""
    from pairs import TwoLayers

    from ppl_gen.inference.pair import Pair

    class Opaque(nn.Module):
        def __init__(self, guide: ExactGuide):
            super().__init__()
            self.guide = guide.guide

    model, x = LinearGaussian(), torch.zeros(3, 5, dtype=F64)
    visible = torch.arange(5) < 3
    opaque = Opaque(ExactGuide(model))

    def impute(model: Any, guide: Any, x: Tensor, visible: Tensor) -> None:
        none: Any = None
        assembled = Assembled(Config(), model, guide, none, Given())
        vars(assembled)["pair"] = Pair.read(model, guide, x)
        filling.impute(assembled, x, visible, 5, quiet=True)

    with pytest.raises(BadInput, match="encode"):
        impute(model, opaque, x, visible)
    two = TwoLayers()
    with pytest.raises(BadInput, match="one latent site"):
        impute(two, two, x[:, :3], visible[:3])
