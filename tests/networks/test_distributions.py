import decimal
import itertools
import math
from contextlib import nullcontext
from decimal import Decimal
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_gen.networks.distributions import BernoulliVector, ContinuousBernoulli, LinearBernoulliVector
from ppl_gen.networks.log_density import log_density
from ppl_gen.networks.pixel_sums import recording
from ppl_gen.networks.state_sums import binary_states

F64 = torch.float64
SCALES = st.sampled_from([0.1, 3.0, 60.0, 1e4])


def _bits(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.bernoulli(torch.full(shape, 0.5, dtype=dtype))


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, list | tuple) else [result]:
            if isinstance(each, Tensor):
                self.numel = max(self.numel, each.untyped_storage().nbytes() // each.element_size())
        return result


@pytest.mark.parametrize("way", ["large logits elsewhere", "recorded", "torch.func"])
def test_gradient_at_log_odds_of_zero(way: str) -> None:
    """x - 1/2, also where log p is computed from relu(l) or |l|, whose derivatives at 0 are taken as 0. Parameters that
    start at 0 have such log-odds."""
    x = _bits(3, 5)
    seen = torch.ones(3, 5, dtype=torch.bool)
    densities: list[Any] = [
        lambda logits: BernoulliVector(logits).log_prob(x),
        lambda logits: BernoulliVector(logits).observed(seen).log_prob(x),
        lambda logits: ContinuousBernoulli(logits=logits).log_prob(x).sum(-1),
    ]
    for density, images in itertools.product(densities, (3, 1)):  # logits of each image, and of all images together
        logits = torch.zeros(4, images, 5, dtype=F64)
        if way == "large logits elsewhere":
            logits[:, :, 1] = 1e7
        if way == "torch.func":
            slope = torch.func.grad(lambda logits, density=density: density(logits).sum())(logits)
        else:
            leaf = logits.clone().requires_grad_()
            with recording() if way == "recorded" else nullcontext():
                (slope,) = torch.autograd.grad(density(leaf).sum(), leaf)
        expected = (x[:, 0] - 0.5).sum_to_size(images).expand(4, images)
        torch.testing.assert_close(slope[:, :, 0], expected, rtol=0, atol=1e-12)


@settings(max_examples=60)
@given(
    pixels=st.integers(1, 9),
    batch=st.lists(st.integers(1, 4), max_size=2),
    samples=st.lists(st.integers(1, 3), max_size=2),
    scale=SCALES,
    seed=st.integers(0, 2**32),
)
def test_is_a_vector_of_bernoullis(pixels: int, batch: list[int], samples: list[int], scale: float, seed: int) -> None:
    """Values and gradients to float64 precision, at every broadcast and for logits of any size."""
    torch.manual_seed(seed)
    logits = (torch.randn(*batch, pixels, dtype=F64) * scale).requires_grad_()
    x = _bits(*samples, *batch, pixels)
    ours, theirs = BernoulliVector(logits), dist.Bernoulli(logits=logits).to_event(1)
    assert ours.batch_shape == theirs.batch_shape and ours.event_shape == theirs.event_shape
    expected = theirs.log_prob(x)
    # Softplus rounds at the size of the logits.
    torch.testing.assert_close(ours.log_prob(x), expected, rtol=1e-12, atol=1e-15 * scale * pixels + 1e-13)
    wide = ours.expand(torch.Size([*samples, *batch]))
    assert wide.batch_shape == (*samples, *batch) and wide.logits is ours.logits
    torch.testing.assert_close(wide.log_prob(x), ours.log_prob(x), rtol=0, atol=0)
    gradients = [torch.autograd.grad(d.log_prob(x).sum(), logits)[0] for d in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)
    assert ours.sample(torch.Size(samples)).shape == (*samples, *batch, pixels)


@settings(max_examples=40)
@given(
    samples=st.integers(1, 4), images=st.integers(1, 4), scale=SCALES, grey=st.booleans(), seed=st.integers(0, 2**32)
)
def test_many_samples_of_z(samples: int, images: int, scale: float, grey: bool, seed: int) -> None:
    """Logits [samples, images, pixels] against images [images, pixels], as importance sampling has them, without
    gradients; grey values, too."""
    torch.manual_seed(seed)
    logits = torch.randn(samples, images, 7, dtype=F64) * scale
    x = torch.rand(images, 7, dtype=F64) if grey else _bits(images, 7)
    expected = (x * logits - F.softplus(logits, threshold=700)).sum(-1)
    ours = BernoulliVector(logits, validate_args=False).expand([samples, images])
    found = ours.log_prob(x)
    with torch.no_grad():
        again = ours.log_prob(x)
    for each in (found, again):
        torch.testing.assert_close(each, expected, rtol=1e-12, atol=1e-15 * scale * 7 + 1e-13)


@settings(max_examples=60)
@given(
    pixels=st.integers(1, 9),
    states=st.integers(1, 5),
    plates=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    scale=SCALES,
    seed=st.integers(0, 2**32),
)
def test_enumerated_against_images(pixels: int, states: int, plates: list[int], scale: float, seed: int) -> None:
    """Parameters [states, 1, …], images [plates, …]: the broadcast of Pyro's parallel enumeration."""
    torch.manual_seed(seed)
    logits = (torch.randn(states, *(1 for _ in plates), pixels, dtype=F64) * scale).requires_grad_()
    x = _bits(*plates, pixels)
    ours = BernoulliVector(logits).expand([states, *plates])
    theirs = dist.Bernoulli(logits=logits).to_event(1)
    expected = theirs.log_prob(x)
    assert ours.log_prob(x).shape == expected.shape == (states, *plates)
    torch.testing.assert_close(ours.log_prob(x), expected, rtol=1e-11, atol=1e-13 * (1 + min(scale, 60) * pixels))
    gradients = [torch.autograd.grad(d.log_prob(x).sum(), logits)[0] for d in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@settings(max_examples=60)
@given(
    units=st.integers(1, 7),
    pixels=st.integers(1, 9),
    plates=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    scale=SCALES,
    seed=st.integers(0, 2**32),
)
def test_linear_logits_over_all_states(units: int, pixels: int, plates: list[int], scale: float, seed: int) -> None:
    """The fast path and its gradients, against `Bernoulli` with all logits written out."""
    torch.manual_seed(seed)
    weight = (torch.randn(units, pixels, dtype=F64) * scale).requires_grad_()
    bias = torch.randn(pixels, dtype=F64).requires_grad_()
    support = BernoulliVector(torch.zeros(units, dtype=F64)).expand(plates).enumerate_support(expand=False)
    assert support.shape == (2**units, *(1 for _ in plates), units)
    x = _bits(*plates, pixels)
    ours = LinearBernoulliVector(support, weight, bias).expand([2**units, *plates])
    theirs = dist.Bernoulli(logits=support @ weight + bias).to_event(1)
    assert ours._is_support(x)
    size = scale * units * pixels
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=1e-11, atol=1e-14 * size + 1e-12)
    g = torch.randn(2**units, *plates, dtype=F64)
    gradients = [torch.autograd.grad((d.log_prob(x) * g).sum(), (weight, bias)) for d in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


@given(
    units=st.integers(1, 9),
    pixels=st.integers(1, 9),
    images=st.integers(1, 4),
    scale=st.sampled_from([0.1, 1.0, 30.0, 200.0]),
    seed=st.integers(0, 2**32),
)
def test_marginal_is_the_sum_over_all_states(units: int, pixels: int, images: int, scale: float, seed: int) -> None:
    """And its gradients are the sum's: of units whose evidence is a few nats, and thousands of them."""
    torch.manual_seed(seed)
    weight = (torch.randn(units, pixels, dtype=F64) * scale).requires_grad_()
    bias, logits = (torch.randn(size, dtype=F64).requires_grad_() for size in (pixels, units))
    x = _bits(images, pixels)
    states = binary_states(units, F64).unsqueeze(1)
    vector = LinearBernoulliVector(states, weight, bias).expand([2**units, images])
    prior = BernoulliVector(logits).expand([images])
    assert vector.sums_over(prior, states)
    found = vector.log_marginal(x, prior)
    assert found is not None
    joint = BernoulliVector(logits).log_prob(binary_states(units, F64)).unsqueeze(-1) + vector.log_prob(x)
    truth = joint.logsumexp(0)
    torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-10)
    gradients = [torch.autograd.grad(total.sum(), (weight, bias, logits)) for total in (found, truth)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


def test_marginal_of_what_cannot_be_summed() -> None:
    """A prior of each image's own, stock distributions, classes of one's own, and z that is not all states."""

    class Mine(LinearBernoulliVector): ...

    class MyPrior(BernoulliVector): ...

    weight, bias, states = torch.randn(3, 5), torch.zeros(5), binary_states(3).unsqueeze(1)
    vector, prior = LinearBernoulliVector(states, weight, bias), BernoulliVector(torch.zeros(3))
    assert vector.sums_over(prior, states)
    assert not vector.sums_over(prior, states.clone())
    assert not Mine(states, weight, bias).sums_over(prior, states)
    for other in (BernoulliVector(torch.zeros(4, 3)), BernoulliVector(torch.zeros(4)), MyPrior(torch.zeros(3))):
        assert not vector.sums_over(other, states)
    assert not vector.sums_over(dist.Bernoulli(logits=torch.zeros(3)).to_event(1), states)
    assert LinearBernoulliVector(_bits(4, 3).float(), weight, bias).log_marginal(_bits(4, 5).float(), prior) is None
    checked = LinearBernoulliVector(states, weight, bias, validate_args=True)
    with pytest.raises(ValueError, match="support"):
        checked.log_marginal(torch.full((2, 5), 0.5), prior)


def test_no_array_of_states_and_images() -> None:
    """Of weights as large as a fit to inverted images makes them, whose evidence is hundreds of nats for each unit."""
    torch.manual_seed(0)
    units, images = 12, 300
    weight = torch.randn(units, 784) + 1
    states, x = binary_states(units).unsqueeze(1), torch.bernoulli(torch.full((images, 784), 0.8))
    vector = LinearBernoulliVector(states, weight, torch.zeros(784))
    with _Largest() as largest:
        vector.log_marginal(x, BernoulliVector(torch.zeros(units)))
    assert largest.numel < 2**units * images
    exact = vector.log_prob(x).double().logsumexp(0) - units * math.log(2)
    found = vector.log_marginal(x, BernoulliVector(torch.zeros(units)))
    assert found is not None
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


def test_no_second_derivative_is_wrong() -> None:
    """It is refused, even where another path to the weights has one."""
    weight, states = torch.randn(3, 5, dtype=F64), binary_states(3, F64).unsqueeze(1)

    def total(weight: Tensor) -> Tensor:
        vector = LinearBernoulliVector(states, weight, torch.zeros(5, dtype=F64))
        found = vector.log_marginal(torch.ones(2, 5, dtype=F64), BernoulliVector(torch.zeros(3, dtype=F64)))
        assert found is not None
        return found.sum()

    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.functional.hessian(total, weight)


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (8, 1, 3), (3,)])
def test_linear_logits_of_any_other_z(shape: tuple[int, ...]) -> None:
    """Samples, and even 2^M states in another order, go the general way."""
    weight, bias = torch.randn(3, 6, dtype=F64), torch.randn(6, dtype=F64)
    z, x = _bits(*shape), _bits(5, 6)
    if shape == (8, 1, 3):
        z = binary_states(3, F64).flip(0).unsqueeze(1)
    ours = LinearBernoulliVector(z, weight, bias)
    assert not ours._is_support(x)
    expected = dist.Bernoulli(logits=z @ weight + bias).to_event(1).log_prob(x)
    torch.testing.assert_close(ours.log_prob(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.mean, (z @ weight + bias).sigmoid())


def test_no_array_of_states_images_pixels() -> None:
    states, images, pixels, units = 2**10, 50, 40, 10
    x = _bits(images, pixels, dtype=torch.float32)
    z = binary_states(units).unsqueeze(1)
    weight, bias = torch.randn(units, pixels, requires_grad=True), torch.zeros(pixels)
    logits = torch.randn(states, 1, pixels, requires_grad=True)
    for distribution, parameter in (
        (LinearBernoulliVector(z, weight, bias), weight),
        (BernoulliVector(logits).expand([states, images]), logits),
    ):
        with _Largest() as largest:
            distribution.log_prob(x).sum().backward()
        assert parameter.grad is not None
        assert states * images <= largest.numel < 2 * states * images


@pytest.mark.parametrize("pixels", [1, 4])
def test_support(pixels: int) -> None:
    """All vectors once, bit m of the index being pixel m; probabilities that sum to one; expanded like Pyro's own."""
    distribution = BernoulliVector(torch.randn(3, pixels, dtype=F64) * 4)
    narrow, wide = distribution.enumerate_support(expand=False), distribution.enumerate_support()
    assert narrow.shape == (2**pixels, 1, pixels) and wide.shape == (2**pixels, 3, pixels)
    index = (narrow[:, 0] * 2 ** torch.arange(pixels)).sum(-1)
    assert index.tolist() == list(range(2**pixels)) and distribution.num_states == 2**pixels
    torch.testing.assert_close(distribution.log_prob(narrow).logsumexp(0), torch.zeros(3, dtype=F64))
    assert distribution.has_enumerate_support
    with pytest.raises(NotImplementedError, match=r"2\^40"):
        BernoulliVector(torch.zeros(40)).enumerate_support()


def test_select() -> None:
    """The distribution of some pixels is the others summed out."""
    weight, bias, z = torch.randn(2, 5, dtype=F64), torch.randn(5, dtype=F64), _bits(3, 2)
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)), dtype=F64)
    given_pixels = torch.tensor([0, 3])
    same = (x[:, given_pixels] == torch.tensor([1.0, 0.0])).all(-1)
    for distribution in (BernoulliVector(z @ weight + bias), LinearBernoulliVector(z, weight, bias)):
        summed = distribution.log_prob(x[same][:, None]).logsumexp(0)
        torch.testing.assert_close(distribution.select(given_pixels).log_prob(x[same][0, given_pixels]), summed)


def test_kl() -> None:
    q, p = BernoulliVector(torch.randn(3, 4, dtype=F64)), BernoulliVector(torch.randn(4, dtype=F64))
    z = q.enumerate_support()
    expected = (q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))).sum(0)
    torch.testing.assert_close(torch.distributions.kl_divergence(q, p), expected)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_float32_is_stable(sign: float) -> None:
    """Logits of 1e4 and -1e4, which the image agrees with, leave the one fair coin: log 1/2, by every path."""
    logits = torch.tensor([[1e4, -1e4, 0.0, 30.0]]) * sign
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0]]) if sign > 0 else torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    for distribution in (BernoulliVector(logits), BernoulliVector(logits.expand(2, 1, 4))):
        torch.testing.assert_close(distribution.log_prob(x).flatten()[:1], torch.tensor([-0.6931472]))
    pixels = torch.full((784,), 1e4) * sign  # a sum of 784 terms of 1e4, less another
    value = torch.full((3, 784), float(sign > 0))
    torch.testing.assert_close(BernoulliVector(pixels.expand(2, 1, 784)).log_prob(value), torch.zeros(2, 3))
    wrong = BernoulliVector(pixels.expand(2, 1, 784)).log_prob(1 - value)
    torch.testing.assert_close(wrong, torch.full((2, 3), -7.84e6))


def test_sample_has_the_mean() -> None:
    """Within 5 standard errors of each of 6 pixels: false-alarm rate 4e-6."""
    distribution = BernoulliVector(torch.linspace(-3, 3, 6))
    draws = distribution.sample(torch.Size([40_000]))
    error = (draws.mean(0) - distribution.mean).abs()
    assert (error < 5 * (distribution.variance / 40_000).sqrt()).all()


def test_validation() -> None:
    with pytest.raises(ValueError, match="logits"):
        BernoulliVector(torch.tensor([float("nan")]), validate_args=True)
    with pytest.raises(ValueError, match="finite"):
        LinearBernoulliVector(torch.zeros(2), torch.full((2, 3), float("inf")), torch.zeros(3), validate_args=True)
    with pytest.raises(ValueError, match=r"not \(4, 2\), \(2, 3\), \(4, 3\)"):
        LinearBernoulliVector(torch.zeros(4, 2), torch.zeros(2, 3), torch.zeros(4, 3))
    checked = BernoulliVector(torch.zeros(3), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        checked.log_prob(torch.tensor([0.5, 0.0, 1.0]))
    with pytest.raises(RuntimeError):
        BernoulliVector(torch.zeros(4, 3)).expand(torch.Size([5]))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    weight, bias = torch.randn(3, 5, dtype=dtype), torch.zeros(5, dtype=dtype)
    prior = BernoulliVector(torch.zeros(3, dtype=dtype))
    z = prior.expand([4]).enumerate_support(expand=False)
    x = LinearBernoulliVector(z[:, 0], weight, bias).sample()
    assert z.dtype == x.dtype == prior.sample().dtype == dtype
    assert LinearBernoulliVector(z, weight, bias).log_prob(x[:4]).dtype == dtype


def test_linear_logits_over_all_states_of_no_image() -> None:
    """As a process has that is left without any."""
    weight = torch.randn(3, 5, requires_grad=True)
    states = binary_states(3).unsqueeze(1)
    vector = LinearBernoulliVector(states, weight, torch.zeros(5), validate_args=False)
    found = vector.log_prob(torch.zeros(0, 5))
    assert found.shape == (8, 0)
    summed = vector.log_marginal(torch.zeros(0, 5), BernoulliVector(torch.zeros(3)))
    assert summed is not None and summed.shape == (0,)
    (found.sum() + summed.sum()).backward()
    assert weight.grad is not None and (weight.grad == 0).all()


LOGITS = [0.0, 1e-8, -1e-4, 0.0399, 0.0401, -0.099, 0.101, 0.299, -0.301, 2.0, 12.0, -17.0, 50.0, -300.0, 1e4]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_continuous_bernoulli(dtype: torch.dtype) -> None:
    """Normalizer, moments and entropy against integrals in closed form, with 100 decimals; gradients of the normalizer
    against the mean: d log C / dl = sigmoid(l) - E[x]."""
    found: dict[str, list[float]] = {name: [] for name in ("log_prob", "mean", "variance", "entropy")}
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    ours = ContinuousBernoulli(logits=logits)
    with decimal.localcontext(prec=100):
        for value in logits.tolist():
            logit = Decimal(value) if value else Decimal("1e-15")  # of which all are 1e-15 from those of 0
            at_zero = (logit / (1 - (-logit).exp())).ln() - logit if logit > 0 else (logit / (logit.exp() - 1)).ln()
            found["log_prob"].append(float(at_zero + logit * Decimal("0.75")))
            mean = 1 / (1 - (-logit).exp()) - 1 / logit
            half = (logit / 2).exp() - (-logit / 2).exp()
            found["mean"].append(float(mean))
            found["variance"].append(float(1 / logit**2 - 1 / half**2))
            found["entropy"].append(float(-at_zero - logit * mean))
    eps = torch.finfo(dtype).eps
    values = {name: getattr(ours, name) for name in ("mean", "variance")}
    values |= {"entropy": ours.entropy(), "log_prob": ours.log_prob(torch.tensor(0.75, dtype=dtype))}
    for name, true in found.items():
        expected = torch.tensor(true, dtype=F64)
        torch.testing.assert_close(values[name].double(), expected, rtol=30 * eps, atol=20 * eps)
    (slope,) = torch.autograd.grad(ours._cont_bern_log_norm().sum(), logits)
    torch.testing.assert_close(slope, logits.sigmoid() - ours.mean, rtol=0, atol=100 * eps)
    x = torch.linspace(0, 1, 9, dtype=dtype).unsqueeze(1)
    torch.testing.assert_close(ours.cdf(ours.icdf(x)), x.expand(-1, len(LOGITS)), rtol=0, atol=2000 * eps)
    assert bool((ours.icdf(x) >= 0).all() and (ours.icdf(x) <= 1).all())


def test_continuous_bernoulli_is_torchs_where_that_is_right() -> None:
    """In float64, between and beyond torch's own limits; the samples are the same, from the same noise."""
    logits = torch.tensor([-20.0, -3.0, -0.5, 0.0, 0.7, 9.0], dtype=F64)
    x = torch.linspace(0, 1, 5, dtype=F64).unsqueeze(1)
    ours, theirs = ContinuousBernoulli(logits=logits), dist.ContinuousBernoulli(logits=logits)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(ours.cdf(x), theirs.cdf(x))
    draws = []
    for each in (ours, theirs):
        torch.manual_seed(0)
        draws.append(each.expand([4, 6]).sample())
    torch.testing.assert_close(*draws)
    wide = ours.expand([4, 6]).to_event(1)
    assert type(wide.base_dist) is ContinuousBernoulli and wide.log_prob(draws[0]).shape == (4,)


def _truth(logits: list[float], x: list[float]) -> float:
    """sum_d log p(x_d) with 60 decimals."""
    with decimal.localcontext(prec=60):
        signed = [Decimal(logit if bit else -logit) for logit, bit in zip(logits, x, strict=True)]
        return float(-sum((1 + (-each).exp()).ln() for each in signed))


@pytest.mark.parametrize("size", [12.0, 30.0, 40.0, 49.0, 60.0, 80.0])
@pytest.mark.parametrize("way", ["one size", "many samples", "broadcast", "enumerated", "pyro", "pyro, broadcast"])
def test_relative_error_near_certainty(way: str, size: float) -> None:
    """In float32, of 784 pixels near certainty, one of which, or half, may be wrong: 1e-6 of log p(x), without a
    gradient. With one the difference of larger numbers is what training takes: 1e-6 of sum_d |l_d|."""
    torch.manual_seed(0)
    logits = torch.where(torch.rand(3, 784) < 0.5, size, -size) + torch.randint(0, 8, (3, 784)) / 8
    images = torch.stack([(logits[0] > 0).float(), (logits[1] > 0).float(), torch.zeros(784), torch.ones(784)])
    images[1, 7] = 1 - images[1, 7]
    x, given_logits = images[:3], logits
    if way == "many samples":
        given_logits = logits.unsqueeze(1).expand(3, 3, -1).contiguous()
    elif "broadcast" in way or way == "enumerated":
        given_logits = logits.unsqueeze(1)
    parameters = given_logits
    if way == "enumerated":  # z W + c is one of two rows
        parameters = torch.stack([logits[1] - logits[0], logits[0]])

    def log_prob(parameters: Tensor) -> Tensor:
        if way.startswith("pyro"):
            return log_density(dist.Bernoulli(logits=parameters).to_event(1), x)
        if way == "enumerated":
            return LinearBernoulliVector(binary_states(1).unsqueeze(1), parameters[:1], parameters[1]).log_prob(x)
        return BernoulliVector(parameters).log_prob(x)

    if way in ("one size", "pyro"):
        truth = torch.tensor([_truth(logits[i].tolist(), x[i].tolist()) for i in range(3)], dtype=F64)
    else:
        rows = logits[:2] if way == "enumerated" else logits
        truth = torch.tensor([[_truth(row.tolist(), each.tolist()) for each in x] for row in rows], dtype=F64)
    found = log_prob(parameters)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)
    loss = log_prob(parameters.clone().requires_grad_()).detach()
    assert bool(((loss.double() - truth).abs() <= 1e-6 * 784 * (size + 1)).all())


def test_probabilities_near_certainty() -> None:
    """Those of a `Bernoulli`, which torch keeps away from 0 and 1 by 1.2e-7; of 0 and 1 themselves what torch says of
    an image that disagrees, and no loss of one that agrees."""
    probs = torch.tensor([1e-9, 1 - 6e-8, 0.0, 1.0, 0.25])
    stock = dist.Bernoulli(probs=probs)
    for bits in itertools.product([0.0, 1.0], repeat=2):
        x = torch.tensor([*bits, 0.0, 1.0, 1.0])
        expected = (x * probs.double().log().nan_to_num(0, neginf=0)) + (1 - x) * (-probs.double()).log1p().nan_to_num(
            0, neginf=0
        )
        torch.testing.assert_close(log_density(stock, x).double(), expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(log_density(stock, x, wide=True), expected, rtol=1e-12, atol=0)
    x = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    torch.testing.assert_close(log_density(stock, x)[2:], stock.log_prob(x)[2:])


def _bernoulli(vector: BernoulliVector) -> Any:
    return dist.Bernoulli(logits=vector.logits).to_event(1)


@pytest.mark.parametrize(
    "make", [BernoulliVector, lambda logits: LinearBernoulliVector(torch.ones(3, 1), logits, logits[0])]
)
def test_entropy_and_divergence(make: Any) -> None:
    """Against sums over all states, in float64, and of vectors that are Pyro's own, in either place; near certainty in
    float32, against float64."""
    q = make(torch.randn(1, 4, dtype=torch.float32))
    for logits in (torch.randn(4), torch.tensor([12.0, -15.0, 40.0, -90.0])):
        p = BernoulliVector(logits)
        with torch.no_grad():
            z = binary_states(4, F64).unsqueeze(1)
            log_q, log_p = (BernoulliVector(each.logits.double()).log_prob(z) for each in (q, p))
            entropy, divergence = -(log_q.exp() * log_q).sum(0), (log_q.exp() * (log_q - log_p)).sum(0)
            reverse = (log_p.exp() * (log_p - log_q)).sum(0)
            own = -(log_p.exp() * log_p).sum(0)
        torch.testing.assert_close(q.entropy().double().flatten()[:1], entropy.flatten()[:1], rtol=1e-6, atol=0)
        torch.testing.assert_close(p.entropy().double(), own[0], rtol=1e-6, atol=0)
        for left, right in ((q, p), (q, _bernoulli(p)), (_bernoulli(q), p)):
            found = torch.distributions.kl_divergence(left, right)
            torch.testing.assert_close(found.double().flatten()[:1], divergence.flatten()[:1], rtol=1e-6, atol=0)
            found = torch.distributions.kl_divergence(right, left)
            torch.testing.assert_close(found.double().flatten()[:1], reverse.flatten()[:1], rtol=1e-6, atol=1e-7)


def test_divergence_of_other_shapes() -> None:
    """Of an expanded vector, of probabilities of 0 and 1, and of what is no vector of bits."""
    q, p = BernoulliVector(torch.randn(4)).expand([3]), BernoulliVector(torch.randn(2, 1, 4))
    assert torch.distributions.kl_divergence(q, p).shape == (2, 3)
    assert q.entropy().shape == (3,)
    half = BernoulliVector(torch.zeros(2))
    certain = dist.Bernoulli(probs=torch.tensor([0.0, 1.0])).to_event(1)
    torch.testing.assert_close(torch.distributions.kl_divergence(certain, half), torch.tensor(2 * math.log(2)))
    assert torch.distributions.kl_divergence(half, certain) == math.inf
    for other in (dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Bernoulli(torch.ones(3, 2) / 2).to_event(2)):
        for pair in ((half, other), (other, half)):
            with pytest.raises(NotImplementedError):
                torch.distributions.kl_divergence(*pair)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (4, 1, 5)])
@pytest.mark.parametrize("images", [0, 3])
def test_bool_and_integer_images_and_none(shape: tuple[int, ...], images: int) -> None:
    """By every path, with and without a gradient; and no logits."""
    logits = 3 * torch.randn(*shape)
    x = torch.rand(images, 5) < 0.5 if shape != (4, 5) else torch.rand(4, 5) < 0.5
    expected = (x * logits - F.softplus(logits)).sum(-1)
    for dtype, gradient in itertools.product((torch.bool, torch.int64, torch.float32), (False, True)):
        found = BernoulliVector(logits.clone().requires_grad_(gradient)).log_prob(x.to(dtype))
        torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)
    assert BernoulliVector(torch.zeros(0, 1, 5)).log_prob(x.float()).shape[0] == 0
    states, weight = binary_states(2).unsqueeze(1), torch.randn(2, 5)
    linear = LinearBernoulliVector(states, weight, torch.zeros(5))
    torch.testing.assert_close(linear.log_prob(x), linear.log_prob(x.float()))
    marginal = linear.log_marginal(x, BernoulliVector(torch.zeros(2)))
    assert marginal is not None and marginal.shape == x.shape[:1]


def _vector(logits: Tensor, x: Tensor) -> Tensor:
    return BernoulliVector(logits).log_prob(x)


def _linear(weight: Tensor, x: Tensor) -> Tensor:
    return LinearBernoulliVector(binary_states(2).unsqueeze(1), weight, weight[0]).log_prob(x)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(
    "function, shape", [(_vector, (6,)), (_vector, (3, 6)), (_vector, (4, 1, 6)), (_linear, (2, 6))]
)
def test_compiled_whole(function: Any, shape: tuple[int, ...], gradient: bool, backend: str) -> None:
    """`torch.compile(fullgraph=True)`: nothing depends on a value, where arguments are not validated. No
    distribution of torch can be compiled whole where they are."""
    parameter = (20 * torch.randn(*shape)).requires_grad_(gradient)
    x = _bits(3, 6, dtype=torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    with pyro.validation_enabled(False):
        found, expected = compiled(parameter, x), function(parameter, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    if gradient:
        torch.testing.assert_close(
            *(torch.autograd.grad(each.sum(), parameter)[0] for each in (found, expected)), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("function, shape", [(_vector, (6,)), (_vector, (4, 1, 6)), (_linear, (2, 6))])
def test_mapped(function: Any, shape: tuple[int, ...], gradient: bool) -> None:
    """`torch.func.vmap` over images, over parameters, and over both; and gradients of each image's own."""
    parameters = (20 * torch.randn(5, *shape)).requires_grad_(gradient)
    x = _bits(5, 3, 6, dtype=torch.float32)
    for dims in ((None, 0), (0, None), (0, 0)):
        arguments = [each if dim == 0 else each[0] for each, dim in zip((parameters, x), dims, strict=True)]
        found = torch.func.vmap(function, dims)(*arguments)
        rows = [[each if dim is None else each[i] for each, dim in zip(arguments, dims, strict=True)] for i in range(5)]
        torch.testing.assert_close(found, torch.stack([function(*row) for row in rows]), rtol=1e-5, atol=1e-4)
    slopes = torch.func.vmap(torch.func.grad(lambda p, x: function(p, x).sum()))(parameters.detach(), x)
    for i in range(5):
        parameter = parameters[i].detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(parameter, x[i]).sum(), parameter)
        torch.testing.assert_close(slopes[i], slope, rtol=1e-4, atol=1e-4)
