"""Log weights that rounding to float32 spoils: they are refused, and right in float64."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.arguments import as_images
from ppl_gen.inference.double import in_double
from ppl_gen.inference.estimate import mean_mc_se
from ppl_gen.inference.exact import exact_log_px
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.rounding import check_rounding
from ppl_gen.inference.settling import settled_log_px
from ppl_gen.run import Run

F64 = torch.float64


def _counts(scale: float, dtype: torch.dtype) -> tuple[Any, Any, Tensor, Tensor]:
    """Counts of 100 pixels with a common rate, the exact posterior as guide, images, and their log p(x)."""
    torch.manual_seed(0)
    rate = scale * (1 + torch.rand(100, dtype=F64)).float().double()
    x = torch.poisson(dist.Gamma(5.0, 5.0).sample((6, 1)) * rate).double()
    whole, rates = x.sum(-1), rate.sum()
    log_px = 5 * torch.tensor(5.0, dtype=F64).log() - torch.tensor(24.0).log() + torch.lgamma(5 + whole)
    log_px = log_px - (5 + whole) * (5 + rates).log() + (x * rate.log() - torch.lgamma(x + 1)).sum(-1)
    rate, five = rate.to(dtype), torch.tensor(5.0, dtype=dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Gamma(five, five))
            pyro.sample("x", dist.Poisson(z[..., None] * rate).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Gamma(5 + x.sum(-1), 5 + rate.sum()))

    return model, guide, x.to(dtype), log_px


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e6])
def test_large_counts_are_refused_in_float32(scale: float) -> None:
    """All weights are p(x). At a rate of 10,000 rounding changes them by nats, and their mean by half a nat."""
    *pair, x, truth = _counts(scale, F64)
    found = ppl_gen.log_marginal_likelihood(*pair, x, num_samples=200)
    torch.testing.assert_close(found.log_px, truth, atol=1e-5, rtol=0)
    *pair, x, truth = _counts(scale, torch.float32)
    if scale == 1.0:
        found = ppl_gen.log_marginal_likelihood(*pair, x, num_samples=200)
        torch.testing.assert_close(found.log_px, truth, atol=1e-3, rtol=0)
        return
    for of in (ppl_gen.log_marginal_likelihood, ppl_gen.log_weights, settled_log_px):
        options = {} if of is settled_log_px else {"num_samples": 200}
        with pytest.raises(BadInput, match=r"rounding to float32 changes a log weight of image \d by .* nats"):
            of(*pair, x, **options)


class _Net(nn.Module):
    """A narrow likelihood around a linear function of z, far from 0."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.decoder, self.offset = nn.Linear(2, 30), offset
        self.register_buffer("scale", torch.tensor(0.1))

    def model(self, x: Tensor) -> None:
        pyro.module("net", self)
        shift = pyro.param("shift", torch.zeros(30))
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.decoder(z) + shift
            pyro.sample("x", dist.Normal(mean + self.offset, self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_parameters_stay_as_they_are() -> None:
    """Parameters, buffers and the parameter store: the same tensors as before, also where an error ends it."""
    torch.manual_seed(0)
    net = _Net(1e5)
    x = net.offset + torch.randn(5, 30)
    pair = Pair.read(net.model, net.guide, x)
    pair.terms(x)
    kept = {name: (id(value), value.clone()) for name, value in (*net.named_parameters(), *net.named_buffers())}
    store = pyro.get_param_store().get_state()["params"]
    with pytest.raises(BadInput, match="rounding to float32"):
        check_rounding(pair, x)
    with pytest.raises(ZeroDivisionError), in_double(net.model):
        assert net.decoder.weight.dtype is F64 and pyro.param("shift").dtype is F64
        raise ZeroDivisionError
    for name, value in (*net.named_parameters(), *net.named_buffers()):
        assert id(value) == kept[name][0] and value.dtype is torch.float32 and value.equal(kept[name][1])
    after = pyro.get_param_store().get_state()["params"]
    assert {name: id(value) for name, value in after.items()} == {name: id(value) for name, value in store.items()}
    assert isinstance(net.decoder.weight, nn.Parameter)
    near = _Net(0.0)
    check_rounding(Pair.read(near.model, near.guide, x - net.offset), x - net.offset)


def test_code_of_float32_alone_is_left() -> None:
    """A weight that the pair holds as a plain tensor cannot be multiplied by z in float64."""
    weight = torch.randn(2, 30)

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    x = torch.randn(4, 30)
    before = torch.get_rng_state()
    check_rounding(Pair.read(model, guide, x), x)
    assert torch.get_rng_state().equal(before)


def test_an_array_that_float32_does_not_hold() -> None:
    """A tensor keeps its type. An array is converted, and refused if that loses how its rows differ."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            pyro.sample("x", dist.Normal(1e6 + 1e-3 * z, 1e-3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal((x - 1e6) * 500, 0.5**0.5))

    x = 1e6 + 1e-3 * torch.randn(7, dtype=F64)
    truth = dist.Normal(1e6, 1e-3 * 2**0.5).log_prob(x)
    found = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=200)
    torch.testing.assert_close(found.log_px, truth, atol=1e-4, rtol=0)
    with pytest.raises(BadInput, match=r"x differs by 0\.00\d+ around 1e\+06, which float32 does not hold"):
        ppl_gen.log_marginal_likelihood(model, guide, x.numpy(), num_samples=200)
    for harmless in (np.full((4, 2), 0.1), np.full((3, 1), 0.3) + 1e-17, np.random.default_rng(0).random((5, 3)) + 100):
        assert as_images(harmless).dtype is torch.float32
    with np.errstate(all="ignore"):
        assert as_images(np.array([[np.nan], [1.0]])).isnan().any()


class Counts(nn.Module):
    """Counts of about a million, from pixels in [0, 1]."""

    def __init__(self, data_dim: int) -> None:
        super().__init__()
        self.decoder = nn.Linear(2, data_dim)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> None:
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            rate = 1e6 * self.decoder(z).exp()
            pyro.sample("x", dist.Poisson(rate).to_event(1), obs=None if x is None else (x * 1e6).round())


def test_a_fit_is_warned_and_its_evaluation_refused(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The weights are kept."""
    options: dict[str, Any] = {"data": "digits", "binarization": "none", "train_size": 100, "guide": "normal"}
    with pytest.raises(BadInput, match="rounding to float32 changes a log weight"):
        Run.fit(Counts, epochs=1, num_samples=10, out="run", **options)
    assert "warning: rounding to float32 changes a log weight of image" in capsys.readouterr().err
    assert Path("run/checkpoint.safetensors").exists()


def test_a_sum_over_states() -> None:
    """A mixture of counts: exact, but for rounding."""
    torch.manual_seed(0)
    rates = (1e6 * (1 + torch.rand(3, 50))).double()
    x = torch.poisson(rates[torch.randint(3, (9,))])

    def of(dtype: torch.dtype) -> Any:
        def model(x: Tensor) -> None:
            with pyro.plate("images", len(x)):
                k = pyro.sample("k", dist.Categorical(torch.ones(3, dtype=dtype)), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Poisson(rates.to(dtype)[k]).to_event(1), obs=x)

        return model

    terms = dist.Poisson(rates).log_prob(x[:, None]).sum(-1)
    truth = terms.logsumexp(1) - torch.tensor(3.0, dtype=F64).log()
    torch.testing.assert_close(exact_log_px(of(F64), x), truth, atol=1e-5, rtol=0)
    with pytest.raises(BadInput, match=r"rounding to float32 changes log p\(x\) of image \d by"):
        exact_log_px(of(torch.float32), x.float())
    few = (x / 1e6).round()
    rates = rates / 1e6
    truth = dist.Poisson(rates).log_prob(few[:, None]).sum(-1).logsumexp(1) - torch.tensor(3.0, dtype=F64).log()
    torch.testing.assert_close(exact_log_px(of(torch.float32), few.float()), truth, atol=1e-3, rtol=0)


RELAXED = torch.tensor(0.1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("prior", "guide", "dtype", "fine"),
    [
        (lambda t: dist.RelaxedBernoulli(RELAXED.to(t.dtype), logits=t), lambda x: x - 0.5, torch.float32, False),
        (lambda t: dist.RelaxedBernoulli(RELAXED.to(t.dtype), logits=t), lambda x: x - 0.5, torch.float64, True),
        (lambda t: dist.RelaxedBernoulli(RELAXED.to(t.dtype) / 2, logits=t), lambda x: x - 0.5, torch.float64, False),
        (lambda t: dist.RelaxedBernoulli(5 * RELAXED.to(t.dtype), logits=t), lambda x: x - 0.5, torch.float32, True),
        (lambda t: dist.Beta(t + 0.1, 0.1), lambda x: 0.5 * x, torch.float32, False),
        (lambda t: dist.Beta(t + 0.5, 0.5), lambda x: 0.5 * x, torch.float32, True),
    ],
    ids=["relaxed", "relaxed in float64", "colder", "warmer", "beta", "flatter beta"],
)
def test_values_that_are_rounded_to_the_end_of_their_support(
    prior: Any, guide: Any, dtype: torch.dtype, fine: bool
) -> None:
    """p(x = 1) = p(x = 0) = 1/2 by symmetry, if it is not refused: within 4 errors of the mean
    over images (false alarms 6e-5)."""
    x = torch.tensor([0.0, 1.0] * 20, dtype=dtype)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(torch.zeros((), dtype=dtype)))
            pyro.sample("x", dist.Bernoulli(z.clamp(1e-6, 1 - 1e-6)), obs=x)

    def near(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior(guide(x)))

    torch.manual_seed(0)
    if not fine:
        with pytest.raises(BadInput, match=r"of the weights are of z that rounding has put to an end of its") as told:
            ppl_gen.log_marginal_likelihood(model, near, x)
        assert ("compute in float64" in str(told.value)) == (dtype is torch.float32)
        return
    found = ppl_gen.log_marginal_likelihood(model, near, x, num_samples=2000)
    assert abs(float(found.log_px.mean()) - math.log(0.5)) < 4 * mean_mc_se(found.log_px_mc_var)
