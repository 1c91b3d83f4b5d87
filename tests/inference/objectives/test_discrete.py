"""Gradient estimators for discrete z against the exact gradient of the ELBO, on strangers' pairs."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from discrete_pairs import ALL, PIXELS, images
from safetensors.torch import load_file
from scipy.stats import t as student
from torch import Tensor, nn

from ppl_gen.core import components
from ppl_gen.core.errors import BadInput
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.guides.normal import Normal
from ppl_gen.inference.exact_gradient import exact_gradient
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.objectives.nvil import NVIL
from ppl_gen.inference.objectives.rebar import REBAR
from ppl_gen.inference.pair import Pair
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.vae import VAE
from ppl_gen.run import Run

CLAIMS = {
    name: cls.elbo_gradient for name, cls in components.known("objective").items() if hasattr(cls, "elbo_gradient")
}
UNBIASED = sorted(name for name, claim in CLAIMS.items() if claim == "unbiased")
BIASED = sorted(name for name, claim in CLAIMS.items() if claim == "biased")
PAIRS = {
    "arm": ("plates", "layers", "fork"),
    "disarm": ("flat", "layers"),
    "elbo": ("layers",),
    "muprop": ("plates", "layers", "one-hot", "impossible", "fork"),
    "nvil": ("layers", "index", "fork"),
    "rebar": ("plates", "flat", "layers", "one-hot", "impossible", "fork"),
    "relax": ("layers", "one-hot"),
    "rloo": ("layers", "index", "fork", "one-hot", "impossible"),
}
"""Pairs that each is tried on."""
REPEATS, BATCHES = 150, 20


def test_what_they_claim() -> None:
    assert UNBIASED == ["arm", "disarm", "elbo", "muprop", "nvil", "rebar", "relax", "rloo"]
    assert BIASED == ["concrete", "gumbel-softmax", "reinmax", "straight-through", "straight-through-gumbel"]


def _flat(gradient: Any, parameters: list[nn.Parameter]) -> Tensor:
    pairs = zip(gradient, parameters, strict=True)
    return torch.cat([(torch.zeros_like(each) if found is None else found).flatten() for found, each in pairs])


def _draws(objective: Any, pair: Pair, x: Tensor, parameters: list[nn.Parameter], batches: int) -> Tensor:
    """Means of `REPEATS` independent gradients of the ELBO each, [batches, parameters]."""
    if isinstance(objective, nn.Module):  # any weights do
        with torch.no_grad():
            for each in objective.parameters():
                each.add_(0.2 * torch.randn_like(each))
        objective.eval()
    elbo, repeated, found = bind(objective, pair, x), x.repeat(REPEATS, 1), []
    for _ in range(batches):
        loss = elbo.differentiable_loss(pair.model, pair.guide, repeated) / len(repeated)
        found.append(-_flat(torch.autograd.grad(loss, parameters, allow_unused=True), parameters))
    return torch.stack(found)


def _largest_t(name: str, of: str, batches: int = BATCHES, **options: Any) -> tuple[float, float]:
    """The largest |t| over the parameters, and the standard error of the whole gradient relative to its length."""
    own, x = ALL[of](), images()
    pair, parameters = Pair.read(own.model, own.guide, x), list(own.parameters())
    exact = _flat(exact_gradient(pair, parameters, x)[1], parameters)
    # Of several samples a gradient is the mean.
    objective = construct(name, num_particles=2 if of == "layers" and name != "elbo" else None, options=options)
    bind(objective, pair, x)
    draws = _draws(objective, pair, x, parameters, batches)
    error, se = draws.mean(0) - exact, draws.std(0) / math.sqrt(batches)
    # Where nothing is random, rounding is.
    return float((error.abs() / (se + 1e-9)).max()), float(se.norm() / exact.norm())


def _critical(parameters: int, rate: float) -> float:
    """The value that the largest |t| of so many parameters exceeds with a probability of at most `rate`."""
    return float(student.isf(rate / (2 * parameters), BATCHES - 1))


@pytest.mark.parametrize(("name", "of"), [(name, of) for name in UNBIASED for of in PAIRS[name]])
def test_unbiased(name: str, of: str) -> None:
    """The mean of 3,000 gradients is the exact one: no parameter is off by more than a t-test at a level of 1e-5
    allows, with Bonferroni's correction. These 27 tests fail by chance with a probability of 3e-4."""
    largest, resolution = _largest_t(name, of)
    count = sum(each.numel() for each in ALL[of]().parameters())
    assert largest < _critical(count, 1e-5)
    assert resolution < 0.1


@pytest.mark.parametrize("of", PAIRS["muprop"])
def test_unbiased_with_a_baseline(of: str) -> None:
    """As above, with a probability of 4e-5."""
    largest, resolution = _largest_t("muprop", of, baseline=True)
    assert largest < _critical(sum(each.numel() for each in ALL[of]().parameters()), 1e-5) and resolution < 0.1


@pytest.mark.parametrize("of", ["plates", "one-hot"])
@pytest.mark.parametrize("name", BIASED)
def test_biased_gradients_are_seen(name: str, of: str) -> None:
    """The test above sees their bias on the same pairs."""
    assert _largest_t(name, of)[0] > _critical(100, 1e-5)


@pytest.mark.parametrize("name", ["straight-through", "straight-through-gumbel", "reinmax"])
def test_the_models_gradient_is_unbiased_at_samples(name: str) -> None:
    """As above, for the parameters of the model alone."""
    own, x = ALL["plates"](), images()
    pair, parameters = Pair.read(own.model, own.guide, x), [own.prior.bias, *own.hidden.parameters(), own.out.weight]
    exact = _flat(exact_gradient(pair, parameters, x)[1], parameters)
    draws = _draws(construct(name), pair, x, parameters, BATCHES)
    t = (draws.mean(0) - exact).abs() / (draws.std(0) / math.sqrt(BATCHES) + 1e-9)
    assert float(t.max()) < _critical(len(t), 1e-5)


# Own parameters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "of"), [("rebar", "eta"), ("relax", "eta"), ("relax", "networks.0.last.bias")])
def test_control_variates_learn_to_lower_the_variance(name: str, of: str) -> None:
    """The gradient of a parameter of theirs is the derivative of the squared gradient of the logits, by finite
    differences. Each image has one pixel, so that the encoder's weights are the logits of the images."""
    own, x = ALL["plates"](), torch.eye(PIXELS, dtype=torch.float64)
    pair, logits = Pair.read(own.model, own.guide, x), own.encoder.weight
    objective: Any = construct(name)
    elbo = bind(objective, pair, x)
    parameter = dict(objective.named_parameters())[of]

    def loss(value: float) -> Tensor:
        with torch.no_grad():
            parameter.fill_(value)
        torch.manual_seed(3)
        found: Tensor = elbo.differentiable_loss(pair.model, pair.guide, x)
        return found

    squares = [float(torch.autograd.grad(loss(0.7 + off), logits)[0].square().sum()) for off in (-1e-2, 1e-2)]
    slope = float(torch.autograd.grad(loss(0.7), parameter)[0])
    assert slope == pytest.approx((squares[1] - squares[0]) / 2e-2, rel=1e-4)  # a parabola: no error but rounding


@pytest.mark.parametrize(("name", "options"), [("nvil", {}), ("muprop", {"baseline": True})])
def test_a_baseline_is_trained(name: str, options: dict[str, Any]) -> None:
    own, x = ALL["plates"](), images(20)
    pair = Pair.read(own.model, own.guide, x)
    objective: Any = construct(name, options=options)
    elbo = bind(objective, pair, x)
    assert bind(objective, pair, x) and len(list(objective.parameters())) == 4  # made once
    before = next(objective.parameters()).detach().clone()
    parameters = list(own.encoder.parameters())

    def variance() -> float:
        losses = [elbo.differentiable_loss(None, None, x) for _ in range(40)]
        found = [_flat(torch.autograd.grad(loss, parameters), parameters) for loss in losses]
        return float(torch.stack(found).var(0).sum())

    objective.eval()
    first = variance()
    objective.train()
    adam = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(40):
        adam.zero_grad()
        elbo.differentiable_loss(None, None, x).backward()
        adam.step()
    objective.eval()
    assert variance() < 0.7 * first and not torch.equal(before, next(objective.parameters()))


def test_nvil_uses_a_mean_of_earlier_steps() -> None:
    """The first step has none, so that its draw is not compared with itself. A normalized signal is shorter by the
    standard deviation of earlier steps."""
    own, x = ALL["plates"](), images(20)
    pair = Pair.read(own.model, own.guide, x)
    parameters = list(own.encoder.parameters())
    plain, normalized = NVIL(), NVIL(normalize=True)
    found = []
    for objective in (plain, normalized):
        elbo = bind(objective, pair, x)
        with torch.no_grad():
            objective.baselines[0].network[-1].weight.zero_()  # type: ignore[index, union-attr]
            objective.baselines[0].network[-1].bias.zero_()  # type: ignore[index, union-attr]
        torch.manual_seed(1)
        loss = elbo.differentiable_loss(None, None, x)
        found.append(_flat(torch.autograd.grad(loss, parameters), parameters))
        torch.manual_seed(1)
        signal = pair.terms(x, detach=True).log_weight.detach()
        torch.testing.assert_close(objective.baselines[0].mean, 0.2 * signal.mean())
        torch.testing.assert_close(objective.baselines[0].variance, 0.8 + 0.2 * signal.var(correction=0))
        objective.eval()
        torch.manual_seed(2)
        found.append(_flat(torch.autograd.grad(elbo.differentiable_loss(None, None, x), parameters), parameters))
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[3] * normalized.baselines[0].variance.sqrt().clamp(min=1))


# What is refused -----------------------------------------------------------------------------------------------


class _Threshold(nn.Module):
    """A model that looks only whether z is above a half."""

    def __init__(self, change: Callable[[Tensor], Tensor], mask: bool = False):
        super().__init__()
        self.change, self.mask = change, mask
        self.weight = nn.Parameter(torch.randn(2, PIXELS, dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            prior = dist.Bernoulli(0.5 * torch.ones(2, dtype=torch.float64)).to_event(1)
            with _masked(self.mask, x):
                z = pyro.sample("z", prior)
            pyro.sample("x", dist.Bernoulli(logits=self.change(z) @ self.weight).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)), _masked(self.mask, x):
            pyro.sample("z", dist.Bernoulli(logits=x[:, :2]).to_event(1))


@contextmanager
def _masked(mask: bool, x: Tensor) -> Iterator[None]:
    if not mask:
        yield
        return
    with pyro.poutine.mask(mask=x[:, 0] > 0):
        yield


@pytest.mark.parametrize("name", ["muprop", "rebar", "straight-through", "concrete"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda z: (z > 0.5).double(), "a relaxed 'z' does not depend on it; use rloo or disarm"),
        (lambda z: torch.eye(2, dtype=torch.float64)[z.long()][..., 0], "does not depend on it"),
        (lambda z: z * (1 / int((z * (1 - z) == 0).all())), "a relaxed 'z' fails there: ZeroDivisionError"),
    ],
)
def test_a_model_without_derivatives_is_refused(name: str, change: Callable[[Tensor], Tensor], reason: str) -> None:
    own, x = _Threshold(change), images()
    pair = Pair.read(own.model, own.guide, x)
    with pytest.raises(BadInput, match=reason):
        bind(construct(name), pair, x)
    bind(construct("disarm"), pair, x)


@pytest.mark.parametrize(("name", "of"), [("arm", "one-hot"), ("disarm", "index"), ("rebar", "index")])
def test_other_kinds_of_sites_are_refused(name: str, of: str) -> None:
    own, x = ALL[of](), images()
    with pytest.raises(BadInput, match=r"needs (Bernoulli|Bernoulli or one-hot categorical) latent sites, but"):
        bind(construct(name), Pair.read(own.model, own.guide, x), x)


@pytest.mark.parametrize("name", ["arm", "muprop", "gumbel-softmax"])
def test_other_pairs_are_refused(name: str) -> None:
    x = images()
    masked = _Threshold(lambda z: z, mask=True)
    with pytest.raises(BadInput, match=f"objective {name}: a latent site has a mask, which is not supported here"):
        bind(construct(name), Pair.read(masked.model, masked.guide, x), x)
    vae = VAE((2, 2), latent_dim=2)
    with pytest.raises(BadInput, match=f"objective {name}: needs .* latent sites, but 'z' of Normal is"):
        bind(construct(name), Pair.read(vae, Normal((2, 2), 2, "z", vae), x.float()), x.float())
    net = BeliefNet(PIXELS, latent_dim=2).double()
    with pytest.raises(BadInput, match="nothing is sampled; use elbo with 1 particle"):
        bind(construct(name), Pair.read(net, Enumerated(), x), x)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rloo", {"num_particles": 1}, "rloo needs at least 2 samples"),
        ("arm", {"num_particles": 0}, "num_particles 0: must be at least 1"),
        ("rebar", {"options": {"temperature": 0.0}}, "temperature 0.0: must be above 0"),
        ("concrete", {"options": {"prior_temperature": -1.0}}, "must be above 0"),
        ("nvil", {"options": {"decay": 1.0}}, "must be at least 0 and below 1"),
        ("relax", {"options": {"hidden_dim": 0}}, "must be at least 1"),
    ],
)
def test_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        construct(name, **options)


def test_rebar_is_a_module_of_one_number() -> None:
    assert [each.shape for each in REBAR().parameters()] == [()]


def test_a_run_resumes_with_the_weights_of_its_objective(elsewhere: Path) -> None:
    """To the same bits as a run that was not interrupted."""
    options: dict[str, Any] = {"data": "digits", "train_size": 60, "latent_dim": 2, "epochs": 2, "num_samples": 5}

    def interrupt(run: Run, metrics: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    Run.fit("belief-net", guide="bernoulli", objective="relax", out="whole", quiet=True, **options)
    with pytest.raises(KeyboardInterrupt):
        cut = {**options, "out": "cut", "on_epoch": interrupt}
        Run.fit("belief-net", guide="bernoulli", objective="relax", quiet=True, **cut)
    Run.open("cut").resume(quiet=True)
    whole, cut_and_resumed = (load_file(f"{name}/checkpoint.safetensors") for name in ("whole", "cut"))
    assert {"last.objective.eta", "last.objective.networks.0.last.bias"} < whole.keys() == cut_and_resumed.keys()
    assert all(torch.equal(each, cut_and_resumed[name]) for name, each in whole.items())
