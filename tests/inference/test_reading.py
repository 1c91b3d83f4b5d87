"""Pairs that are refused when they are read, and what is known of the others."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import number, one_site
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.inference.checks import check_images
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.pair import Pair


def _delta(x: Tensor) -> dist.Distribution:
    return dist.Delta(x / 2)


def _straight_through(x: Tensor) -> dist.Distribution:
    return dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), probs=torch.full_like(x, 0.4))


def _mixture_of_deltas(x: Tensor) -> dist.Distribution:
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(len(x), 2)), dist.Delta(torch.stack([x / 2, x], -1)))


@pytest.mark.parametrize(
    "posterior",
    [
        _straight_through,
        _mixture_of_deltas,
        lambda x: dist.ZeroInflatedDistribution(dist.Normal(x / 2, 0.8), gate=torch.full_like(x, 0.1)),
        _delta,
        lambda x: dist.Delta(x / 2, log_density=torch.zeros_like(x)),
        lambda x: _delta(x).mask(torch.ones(len(x), dtype=torch.bool)),
        lambda x: _delta(x).expand([len(x)]),
        lambda x: dist.TransformedDistribution(_delta(x), [dist.transforms.AffineTransform(1.0, 2.0)]),
    ],
)
def test_a_guide_without_a_density(posterior: Callable[[Tensor], dist.Distribution]) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", posterior(x))

    model = one_site(
        dist.RelaxedBernoulli(torch.tensor(0.7), probs=torch.tensor(0.4))
        if posterior is _straight_through
        else dist.Normal(0.0, 1.0),
        lambda z: dist.Normal(z, 1.0),
    )
    with pytest.raises(BadInput, match=r"'z' is a .*, which has no density"):
        ppl_gen.log_marginal_likelihood(model, guide, torch.randn(5), num_samples=10)


def test_a_part_of_a_plate_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            with pyro.plate("pixels", 4, subsample_size=2, dim=-1) as some:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, some])

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True), 0.6))

    with pytest.raises(BadInput, match="plate 'pixels' of model takes 2 of 4"):
        ppl_gen.log_weights(model, guide, torch.randn(5, 4), num_samples=2)


def _likelihood(shape: tuple[int, ...], events: int) -> Any:
    decoder = nn.Linear(2, int(torch.Size(shape).numel()))

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z).unflatten(-1, shape)).to_event(events), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))

    return model, guide


def test_events_of_too_few_dimensions() -> None:
    """[N, 1, 20, 10] needs three: with two, every image would meet every other."""
    x = torch.bernoulli(torch.full((5, 1, 20, 10), 0.5))
    with pytest.raises(BadInput, match=r"log-densities of shape \(5, 5\).*\.to_event\(n\)"):
        ppl_gen.log_weights(*_likelihood((1, 20, 10), 2), x, num_samples=2)
    with pytest.raises(BadInput):
        ppl_gen.log_weights(*_likelihood((1, 20, 10), 1), x, num_samples=2)
    assert ppl_gen.log_weights(*_likelihood((1, 20, 10), 3), x, num_samples=2).shape == (2, 5)


def test_a_column_of_images() -> None:
    """x [N, 1] against a z of one number: N x N densities."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.8))

    with pytest.raises(BadInput, match=r"log-densities of shape"):
        ppl_gen.log_weights(model, guide, torch.randn(7, 1), num_samples=2)


@pytest.mark.parametrize("flatten", [False, True])
def test_a_support_of_a_state_that_no_draw_had(flatten: bool) -> None:
    """x ~ Binomial(5 + 5 z) with p(z = 1) = 1e-9: 7 is possible, which only the states themselves tell. One model
    broadcasts over states, the other takes one at a time."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(number(1e-9)), infer={"enumerate": "parallel"})
            z = torch.tensor(z.flatten().tolist(), dtype=torch.float64) if flatten and z.dim() else z
            pyro.sample("x", dist.Binomial(5 + 5 * z, number(0.5)), obs=x)

    x = torch.tensor([3.0, 7.0], dtype=torch.float64)
    with evaluating():
        pair = Pair.read(model, Enumerated(), x)
        assert pair.may_leave_support == {"x"}
        assert check_images(pair, x) == "probability"


def test_one_support_of_all_states_is_no_excuse() -> None:
    """A support that is a tensor, and the same for every state: an image outside of it is impossible."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(number(0.5)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Uniform(0 * z, 1 + 0 * z), obs=x)

    with evaluating():
        pair = Pair.read(model, Enumerated(), number(0.5).expand(3))
        assert not pair.may_leave_support
        with pytest.raises(BadInput, match="image 1 is impossible"):
            check_images(pair, torch.tensor([0.5, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("who", ["guide", "model"])
def test_images_are_not_changed_in_place(who: str) -> None:
    """The other function would score other images."""

    def model(x: Tensor) -> None:
        if who == "model":
            x.clamp_(max=0.5)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        if who == "guide":
            x.sub_(0.5)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.75))

    x = torch.linspace(2, -2, 12)
    with pytest.raises(BadInput, match=f"{who}.* changes x in place"):
        ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=20)
    assert torch.equal(x, torch.linspace(2, -2, 12))


def test_a_value_of_another_shape_than_its_distribution() -> None:
    """The plate of pixels is where the images are: the message has both shapes."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 6, dim=-2):
                pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.2))

    shapes = r"its value has the shape \(5, 6\), its distribution \(6, 5\) and events of \(\)"
    with pytest.raises(BadInput, match=shapes):
        ppl_gen.log_weights(model, guide, torch.zeros(6, 6), num_samples=5)


_SIX = dist.Normal(torch.zeros(6), 1.0).to_event(1)
_BINARY = one_site(_SIX, lambda z: dist.Bernoulli(logits=z).to_event(1))


def _standard(site: str) -> Callable[[Tensor], None]:
    """q = N(0, I) for a site of six units."""

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample(site, _SIX)

    return guide


def test_images_that_are_nan_are_named_so() -> None:
    """A Bernoulli scores no NaN. What Pyro says of it would be longer. The image is the one with NaN, where another is
    impossible."""
    x = torch.zeros(4, 6)
    x[1, 2], x[3, 4] = 2.0, torch.nan
    with pytest.raises(BadInput, match=r"^model: site 'x' has the value NaN at image 3$"):
        ppl_gen.log_marginal_likelihood(_BINARY, _standard("z"), x)


def test_a_site_that_is_reparametrized_is_no_image() -> None:
    """`poutine.reparam` puts a Delta in its place, which is observed: x alone is, and it has probabilities."""

    model = poutine.reparam(_BINARY, config={"z": LocScaleReparam(0.0)})
    pair = Pair.read(model, _standard("z_decentered"), torch.zeros(3, 6))
    assert pair.discrete and pair.observed == ("x",) and pair.latent == ("z_decentered",)
