"""Exact log p(x) against sums written out over every x or every z, in float64."""

import decimal
import itertools
import math
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import by_conditioning, random_belief_net, random_mixture
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.inference import enumeration, state_memory
from ppl_gen.inference.enumeration import StateSum, TraceEnum
from ppl_gen.inference.exact import enumerated_pair, exact_log_px
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.mixture import Mixture
from ppl_gen.networks.distributions import BernoulliVector, LinearBernoulliVector
from ppl_gen.networks.state_sums import binary_states

F64 = torch.float64


def _brute_force(model: Mixture | BeliefNet, x: Tensor) -> Tensor:
    """log sum_z prod_d p(x_d | z) p(z), state by state, pixel by pixel; differentiable."""
    if isinstance(model, Mixture):
        weights = (0.1 * model.level).log_softmax(-1)
        states = [(weights[k], model.weight[k] + model.bias) for k in range(len(model.weight))]
    else:
        states = []
        for bits in itertools.product([0.0, 1.0], repeat=len(model.weight)):
            z = torch.tensor(bits, dtype=F64)
            prior = torch.stack([p if bit else 1 - p for p, bit in zip(model.logits.sigmoid(), bits, strict=True)])
            states.append((prior.log().sum(), z @ model.weight + model.bias))
    joint = [
        prior + (x * logits.sigmoid().log() + (1 - x) * (-logits).sigmoid().log()).sum(-1) for prior, logits in states
    ]
    return torch.stack(joint).logsumexp(0)


MODELS = [pytest.param(random_mixture, id="mixture"), pytest.param(random_belief_net, id="belief-net")]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("pixels", [1, 6, 10])
def test_all_images_sum_to_one(make: Any, pixels: int) -> None:
    log_px = exact_log_px(make(pixels), binary_states(pixels, F64))
    assert log_px.shape == (2**pixels,)
    assert abs(log_px.logsumexp(0).item()) < 1e-10


@pytest.mark.parametrize("make", MODELS)
def test_loss_is_the_brute_force_sum(make: Any) -> None:
    """Value and every gradient, from the methods of the model, of `TraceEnum`, and of Pyro's own class on the same
    pair."""
    model, x = make(7), torch.bernoulli(torch.full((9, 7), 0.5, dtype=F64))
    expected = -_brute_force(model, x).sum()
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    pair = Pair.read(model, Enumerated(), x)
    assert pair.direct is not None
    ours = bind(construct("elbo"), replace(pair, direct=None), x)
    assert isinstance(ours, TraceEnum)
    for elbo in (bind(construct("elbo"), pair, x), ours, TraceEnum_ELBO(max_plate_nesting=1)):
        loss = elbo.differentiable_loss(model.model, Enumerated().guide, x)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        for mine, true in zip(torch.autograd.grad(loss, list(model.parameters())), gradients, strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-9, atol=1e-10)
    assert ours.loss(model.model, None, x) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("make", MODELS)
def test_images_in_blocks(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make(5), torch.bernoulli(torch.full((23, 5), 0.5, dtype=F64))
    whole = exact_log_px(model, x)
    monkeypatch.setattr(state_memory, "_STATES_IMAGES", 40)
    torch.testing.assert_close(exact_log_px(model, x), whole, rtol=1e-13, atol=0)
    torch.testing.assert_close(whole, _brute_force(model, x).detach(), rtol=1e-12, atol=1e-12)


def test_a_likelihood_against_its_prior() -> None:
    """The state that explains x is 120 nats less probable a priori than another: Pyro's contraction, which takes the
    maximum of each factor by itself, loses it in float32."""
    prior = torch.tensor([0.0, -120.0])
    logits = torch.tensor([[-1.0] * 400, [1.0] * 400])
    x = torch.ones(1, 400)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=prior), infer={"enumerate": "parallel"})
            pyro.sample("x", BernoulliVector(logits[z]), obs=x)

    expected = -120 + 400 * math.log(torch.tensor(1.0).sigmoid())
    assert exact_log_px(model, x).item() == pytest.approx(expected, rel=1e-6)
    with pyro.validation_enabled(False):
        stock = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda x: None, x)
    assert stock < expected - 20  # when Pyro gets this right, `TraceEnum` is no longer needed


class _NetNamedModel(nn.Module):
    """A Pyro model in `forward`, whose net is called `model`."""

    def __init__(self, probs: Tensor):
        super().__init__()
        self.model = nn.Linear(2, 4, bias=False, dtype=F64)
        with torch.no_grad():
            self.model.weight.copy_(probs.logit().T)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7], dtype=F64)))
            pyro.sample("x", BernoulliVector(self.model(torch.eye(2, dtype=F64)[z])), obs=x)


def test_a_net_that_is_called_model() -> None:
    probs = torch.tensor([[0.2, 0.6, 0.9, 0.5], [0.7, 0.1, 0.4, 0.8]], dtype=F64)
    x = binary_states(4, F64)
    likelihood = torch.where(x[:, None] == 1, probs, 1 - probs).prod(-1)
    expected = (likelihood @ torch.tensor([0.3, 0.7], dtype=F64)).log()
    torch.testing.assert_close(exact_log_px(_NetNamedModel(probs), x), expected, rtol=1e-12, atol=1e-12)


class _Several(nn.Module):
    """y -> z -> x, with a w for each half of the image in a plate of its own."""

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        table = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], dtype=F64)
        logits = torch.arange(3 * 2, dtype=F64).reshape(3, 2) - 2
        x = torch.zeros(n, 4, dtype=F64) if x is None else x
        with pyro.plate("images", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3, dtype=F64)))
            z = pyro.sample("z", dist.Categorical(table[y.long()]))
            with pyro.plate("halves", 2, dim=-2):
                w = pyro.sample("w", dist.Bernoulli(torch.tensor([[0.4], [0.9]], dtype=F64)))
                each = logits[z.unsqueeze(-1), w.unsqueeze(-1).long()].expand(
                    *torch.broadcast_shapes(w.shape, z.shape), 2
                )
                halves = torch.stack([x[:, :2], x[:, 2:]])
                return pyro.sample("x", BernoulliVector(each), obs=halves)

    @staticmethod
    def log_px(x: Tensor) -> Tensor:
        table = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]], dtype=F64)
        logits = torch.arange(3 * 2, dtype=F64).reshape(3, 2) - 2
        total = torch.zeros(len(x), dtype=F64)
        for y, z in itertools.product(range(2), range(3)):
            product = (0.3 if y else 0.7) * table[y, z]
            for half, chance in enumerate((0.4, 0.9)):
                pixels = x[:, 2 * half : 2 * half + 2]
                terms = torch.zeros(len(x), dtype=F64)
                for w in range(2):
                    p = logits[z, w].sigmoid()
                    terms += (chance if w else 1 - chance) * (p**pixels * (1 - p) ** (1 - pixels)).prod(-1)
                product = product * terms
            total += product
        return total.log()


def test_several_sites_in_nested_plates() -> None:
    x = binary_states(4, F64)
    expected = _Several.log_px(x)
    assert abs(expected.logsumexp(0).item()) < 1e-12  # the reference itself is a distribution
    torch.testing.assert_close(exact_log_px(_Several(), x), expected, rtol=1e-11, atol=1e-12)
    guide = Enumerated()
    marked = pyro.infer.config_enumerate(_Several().model, "parallel")
    assert Pair.read(marked, guide, x).num_states == 12


@pytest.mark.parametrize("kind", ["as it is", "spins", "its own class"])
def test_a_belief_net_of_another_kind_is_summed_too(kind: str) -> None:
    """Where the likelihood cannot sum over states by itself, the sum is the one written out."""
    torch.manual_seed(0)
    weight, bias, logits = (torch.randn(size, dtype=F64) for size in ((3, 5), (5,), (3,)))
    x = torch.bernoulli(torch.full((4, 5), 0.5, dtype=F64))

    class Half(LinearBernoulliVector):
        def log_prob(self, value: Tensor) -> Tensor:
            return 0.5 * super().log_prob(value)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", BernoulliVector(logits), infer={"enumerate": "parallel"})
            make = Half if kind == "its own class" else LinearBernoulliVector
            pyro.sample("x", make(2 * z - 1 if kind == "spins" else z, weight, bias), obs=x)

    states = binary_states(3, F64)
    pixels = torch.distributions.Bernoulli(logits=(2 * states - 1 if kind == "spins" else states) @ weight + bias)
    log_likelihood = pixels.log_prob(x.unsqueeze(1)).sum(-1) * (0.5 if kind == "its own class" else 1.0)
    expected = (BernoulliVector(logits).log_prob(states) + log_likelihood).logsumexp(-1)
    torch.testing.assert_close(exact_log_px(model, x), expected)


def _in_decimals(log_prior: list[float], logits: Tensor, x: Tensor) -> list[float]:
    """log sum_z p(z) prod_d sigmoid(±l_zd) with 60 decimals, of unnormalized log p(z) and logits [states, pixels]."""
    with decimal.localcontext(prec=60):
        prior = [Decimal(each).exp() for each in log_prior]
        scale = sum(prior)

        def log_sigmoid(logit: float) -> Decimal:
            return -(1 + (-Decimal(logit)).exp()).ln()

        result = []
        for image in x.double().tolist():
            total = Decimal(0)
            for weight, row in zip(prior, logits.double().tolist(), strict=True):
                counted = Counter(logit if bit else -logit for logit, bit in zip(row, image, strict=True))
                total += weight / scale * sum(count * log_sigmoid(signed) for signed, count in counted.items()).exp()
            result.append(float(total.ln()))
        return result


PIXELS = 784
NEAR = {
    "-12": lambda shape: torch.full(shape, -12.0),
    "30": lambda shape: torch.full(shape, 30.0),
    "both signs of 30": lambda shape: torch.where(torch.arange(shape[-1]) % 2 == 0, 30.0, -30.0).expand(shape),
    "-100": lambda shape: torch.full(shape, -100.0),
    "40, below the threshold of a product": lambda shape: torch.full(shape, 40.0) + torch.arange(shape[-1]) % 7,
    "one pixel is open": lambda shape: torch.where(torch.arange(shape[-1]) == 5, 0.25, -25.0).expand(shape),
    "sd 60": lambda shape: (60 * torch.randn(shape)).round(decimals=0),
    "sd 3": lambda shape: (3 * torch.randn(shape) * 64).round() / 64,
}


def _images(logits: Tensor) -> Tensor:
    """All zeros, all ones, what the first and the last state make most probable, and that but for a pixel, or half."""
    first, last = (logits[0] > 0).float(), (logits[-1] > 0).float()
    wrong = first.clone()
    wrong[3] = 1 - wrong[3]
    half = torch.where(torch.arange(logits.shape[-1]) % 2 == 0, first, 1 - first)
    return torch.stack([torch.zeros_like(first), torch.ones_like(first), first, last, wrong, half])


@pytest.mark.parametrize("near", NEAR)
@pytest.mark.parametrize("kind", ["belief net", "belief net, masked", "mixture", "pyro", "probabilities"])
def test_relative_error_near_certainty(kind: str, near: str) -> None:
    """In float32, log p(x) is within 1e-6 of its size, of images as probable as 1 - 1e-40 and as improbable as e^-1e5;
    the loss of training within 1e-6 of sum_d |l_d|, and its size. Logits are such that w + c is exact."""
    torch.manual_seed(0)
    log_prior = [0.25, -1.5, 0.75, -3.0]
    if kind.startswith("belief net"):
        model = BeliefNet(PIXELS, latent_dim=2)
        with torch.no_grad():
            model.logits.copy_(torch.tensor([0.5, -1.25]))
            if near.startswith("sd"):
                model.weight.copy_(NEAR[near](model.weight.shape))
            else:
                model.weight.zero_()
                model.bias.copy_(NEAR[near](model.bias.shape))
            states = binary_states(2)
            log_prior, logits = (states @ model.logits).tolist(), states @ model.weight + model.bias
        function: Any = model
        if kind.endswith("masked"):  # the states are then not summed by the likelihood

            def function(x: Tensor) -> None:
                with pyro.poutine.mask(mask=torch.tensor(True)):
                    model.model(x)

    else:
        logits = NEAR[near]((4, PIXELS))

        def function(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(logits=torch.tensor(log_prior)), infer={"enumerate": "parallel"})
                if kind == "mixture":
                    pyro.sample("x", BernoulliVector(logits[z]), obs=x)
                elif kind == "pyro":
                    pyro.sample("x", dist.Bernoulli(logits=logits[z]).to_event(1), obs=x)
                else:
                    pyro.sample("x", dist.Bernoulli(probs=logits[z].sigmoid()).to_event(1), obs=x)

    x = _images(logits)
    if kind == "probabilities":  # as they are in float32, where many are 1: what is left to be exact
        if near in ("30", "both signs of 30", "40, below the threshold of a product", "sd 60"):
            return
        logits = logits.sigmoid().double().logit()
        x = x[: 1 + (near.startswith("sd"))]
    truth = torch.tensor(_in_decimals(log_prior, logits, x), dtype=F64)
    torch.testing.assert_close(exact_log_px(function, x), truth, rtol=1e-6, atol=0)
    if kind in ("belief net", "mixture"):  # what training promises
        logits = logits.detach().requires_grad_()
        total = StateSum(enumerated_pair(function, x), by_state=False)
        loss = total(getattr(function, "model", function), x)
        assert loss.requires_grad
        assert ((loss.double() - truth).abs() <= 1e-6 * (logits.abs().sum(-1).max() + truth.abs())).all()


@pytest.mark.parametrize("by_handler", [False, True])
def test_a_masked_state_counts_for_nothing(by_handler: bool) -> None:
    """Where z and x are masked out, log p(x) is 0 as it is by sampling, not the logarithm of the number of states."""
    seen = torch.tensor([True, False, True])

    def model(x: Tensor, seen: Tensor) -> None:
        prior = dist.Categorical(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)).expand([len(x)])
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=seen if by_handler else True):
            z = pyro.sample("z", prior if by_handler else prior.mask(seen))
            likelihood = dist.Normal(z.double(), 1.0)
            pyro.sample("x", likelihood if by_handler else likelihood.mask(seen), obs=x)

    x = torch.tensor([0.3, 0.3, 2.0], dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    exact = (weights + dist.Normal(torch.arange(3.0, dtype=torch.float64), 1.0).log_prob(x[:, None])).logsumexp(1)
    torch.testing.assert_close(exact_log_px(model, x, seen), exact * seen, rtol=1e-12, atol=1e-12)


SLOPE = torch.tensor([0.1, 1.0, 2.0, 3.0], dtype=F64)
THREE = torch.tensor([0.2, 0.3, 0.5], dtype=F64)


def _view(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return z.double().view(-1, 1) * SLOPE


def _cat(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return torch.cat([z.double().unsqueeze(-1), torch.ones(len(x), 3, dtype=F64)], -1) * SLOPE


def _loop(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return torch.tensor([[2.0 * v] * 4 for v in z.flatten().tolist()], dtype=F64)


def _by_position(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    table = SLOPE + torch.zeros(len(x), 3, 1, dtype=F64) + torch.arange(3, dtype=F64)[:, None]
    return table[torch.arange(z.numel()), z.flatten().long()]


def _one_of_two(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return z.double().unsqueeze(-1) * SLOPE + y.view(-1, 1)


def _broadcasts(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return z.double().unsqueeze(-1) * SLOPE + y.unsqueeze(-1)


def _two_sites(mean: Any) -> Any:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3, dtype=F64)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Categorical(THREE), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(mean(z, y, x), 1.0).to_event(1), obs=x)

    return model


STATES = {"y": [0.0, 1.0], "z": [0.0, 1.0, 2.0]}
MEANS = [_view, _cat, _loop, _by_position, _one_of_two, _broadcasts]


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])  # as many as states of y, of z, of both, and others
@pytest.mark.parametrize("mean", MEANS)
def test_a_model_that_does_not_broadcast_over_states(mean: Any, count: int) -> None:
    x = torch.randn(count, 4, dtype=F64)
    truth = by_conditioning(_two_sites(mean), STATES, x)
    torch.testing.assert_close(exact_log_px(_two_sites(mean), x), truth, rtol=1e-10, atol=1e-10)
    pair = Pair.read(_two_sites(mean), Enumerated(), x)
    loss = bind(construct("elbo"), pair, x).differentiable_loss(pair.model, None, x)
    torch.testing.assert_close(loss, -truth.sum(), rtol=1e-10, atol=1e-10)


def test_the_gradient_state_by_state() -> None:
    slope = SLOPE.clone().requires_grad_()
    model = _two_sites(lambda z, y, x: z.double().view(-1, 1) * slope)
    x = torch.randn(3, 4, dtype=F64)
    pair = Pair.read(model, Enumerated(), x)
    loss = bind(construct("elbo"), pair, x).differentiable_loss(model, None, x)
    truth = -by_conditioning(model, STATES, x).sum()
    torch.testing.assert_close(*(torch.autograd.grad(each, slope)[0] for each in (loss, truth)), rtol=1e-9, atol=1e-9)


def test_a_mask_state_by_state() -> None:
    seen = torch.tensor([True, False, True])

    def model(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Categorical(THREE))
            pyro.sample("x", dist.Normal(z.double().view(-1, 1) * SLOPE, 1.0).to_event(1), obs=x)

    x = torch.randn(3, 4, dtype=F64)
    truth = by_conditioning(model, {"z": STATES["z"]}, x, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(exact_log_px(model, x, seen), truth * seen, rtol=1e-10, atol=1e-10)


def test_near_certainty_state_by_state() -> None:
    """log p(x) = -3.0e-18 is not lost."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(THREE))
            pyro.sample("x", BernoulliVector(40 + 0 * z.double().view(-1, 1) + torch.zeros(1, dtype=F64)), obs=x)

    expected = -math.log1p(math.exp(-40))
    assert exact_log_px(model, torch.ones(4, 1)).tolist() == pytest.approx([expected] * 4, rel=1e-6, abs=0)


def test_refused_where_states_are_too_many_or_in_an_inner_plate() -> None:
    def many(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", BernoulliVector(torch.zeros(13)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z.view(-1, 13).sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

    def inner(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("pixels", 2, dim=-2):
            z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z.flatten().view(2, -1), 1.0), obs=x.T)

    for model, x, cause in ((many, torch.zeros(3, 1), "8,192 states"), (inner, torch.zeros(3, 2), "site 'z' is in a")):
        with pytest.raises(BadInput, match=f"does not broadcast over states of z .*unsqueeze.*{cause}"):
            exact_log_px(model, x)
        pair = Pair.read(model, Enumerated(), x)
        with pytest.raises(BadInput, match="does not broadcast over states of z"):
            bind(construct("elbo"), pair, x)


def test_a_model_that_broadcasts_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enumeration, "_log_marginal_by_state", None)
    x = torch.randn(5, 4, dtype=F64)
    exact_log_px(_two_sites(_broadcasts), x)
    exact_log_px(_Several(), binary_states(4, F64))
    exact_log_px(random_mixture(5, 40), binary_states(5, F64))


@pytest.mark.parametrize("flatten", [False, True])
def test_a_support_that_a_rare_state_admits(flatten: bool) -> None:
    """x = 7 takes z = 1, of probability 0.01, which no draw of z has here; 12 takes a state that there is none of."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.01, dtype=F64)), infer={"enumerate": "parallel"})
            z = torch.tensor(z.flatten().tolist(), dtype=F64) if flatten and z.dim() else z
            pyro.sample("x", dist.Binomial(5 + 5 * z, torch.tensor(0.5, dtype=F64)), obs=x)

    x = torch.tensor([3.0, 7.0, 12.0], dtype=F64)
    truth = [
        math.log(p) if (p := sum(w * math.comb(n, k) / 2**n for w, n in ((0.99, 5), (0.01, 10)))) else -math.inf
        for k in (3, 7, 12)
    ]
    for seed in range(3):
        torch.manual_seed(seed)
        torch.testing.assert_close(exact_log_px(model, x), torch.tensor(truth, dtype=F64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_added_up_in_more(dtype: torch.dtype) -> None:
    """A sum of a thousand pixels in half precision would be off by more than 0.1 nats."""
    loc = (torch.arange(3.0)[:, None] * torch.linspace(-1, 1, 1000)).to(dtype)
    x = (loc[1] + 1).expand(4, 1000)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], torch.ones((), dtype=dtype)).to_event(1), obs=x)

    wide = dist.Normal(loc.double(), 1.0).log_prob(x.double().unsqueeze(1)).sum(-1)
    truth = wide.logsumexp(1) - math.log(3)
    torch.testing.assert_close(exact_log_px(model, x), truth, rtol=1e-6, atol=0)
    pair = Pair.read(model, Enumerated(), x)
    loss = bind(construct("elbo"), pair, x).differentiable_loss(model, None, x)
    torch.testing.assert_close(loss, -truth.sum().float(), rtol=1e-6, atol=0)


def test_pixels_under_autocast() -> None:
    """The logits are bfloat16; their sum is not."""
    weight = torch.randn(1, 2000)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)), infer={"enumerate": "parallel"})
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = z.unsqueeze(-1) @ weight
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    x = torch.bernoulli(torch.full((4, 2000), 0.5))
    logits = torch.stack([torch.zeros(2000), weight[0].bfloat16().float()]).double()
    log_likelihood = -(torch.where(x[:, None] == 1, -logits, logits)).exp().log1p().sum(-1)
    prior = torch.tensor([0.7, 0.3], dtype=F64).log()
    torch.testing.assert_close(exact_log_px(model, x), (prior + log_likelihood).logsumexp(1), rtol=1e-6, atol=0)
