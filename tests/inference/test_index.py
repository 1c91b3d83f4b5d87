"""Parameters for each image: functions that ask for the row numbers of the images, and Pyro's AutoNormal."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.arguments import as_arguments
from ppl_gen.inference.bidirectional import importance_bounds
from ppl_gen.inference.exact import exact_log_px
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.proposals import proposal_log_px
from ppl_gen.inference.signatures import ByName

F64 = torch.float64
N, UNITS = 7, 2
_SEEDED = torch.Generator().manual_seed(1)
X = torch.randn(N, 3, generator=_SEEDED, dtype=F64)
Y = torch.randint(3, (N,), generator=_SEEDED)
W = torch.randn(UNITS, 3, generator=_SEEDED, dtype=F64)
LOC, SCALE = (
    torch.randn(N, UNITS, generator=_SEEDED, dtype=F64),
    torch.rand(N, UNITS, generator=_SEEDED, dtype=F64) + 0.2,
)
ZERO, ONE = torch.zeros(UNITS, dtype=F64), torch.ones(UNITS, dtype=F64)


def model(x: Tensor | None = None, y: Tensor | None = None, *, n: int = 1) -> None:
    shift = 0.0 if y is None else y.to(F64).unsqueeze(-1)
    with pyro.plate("data", n if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(ZERO, ONE).to_event(1))
        pyro.sample("x", dist.Normal(z @ W + shift, 1.0).to_event(1), obs=x)


def sample(index: Tensor) -> None:
    loc, scale = pyro.param("loc", LOC), pyro.param("scale", SCALE)
    with pyro.plate("data", len(index)):
        pyro.sample("z", dist.Normal(loc[index], scale[index]).to_event(1))


def second(x: Tensor, index: Tensor) -> None:
    sample(index)


def between(x: Tensor, index: Tensor, y: Tensor | None = None) -> None:
    sample(index)


def last(x: Tensor, y: Tensor | None = None, index: Tensor | None = None) -> None:
    assert index is not None
    sample(index)


def by_name(x: Tensor, y: Tensor | None = None, *, index: Tensor) -> None:
    sample(index)


def any_others(x: Tensor, *args: Any, index: Tensor) -> None:
    sample(index)


def by_hand(rows: Tensor, y: Tensor | None, num_samples: int, seed: int) -> Tensor:
    """Log weights [samples, images], with the draws that the pair makes at the same seed, all at once."""
    torch.manual_seed(seed)
    z = LOC[rows] + SCALE[rows] * torch.randn(num_samples, len(rows), UNITS, dtype=F64)
    shift = 0.0 if y is None else y.to(F64).unsqueeze(-1)
    normal = torch.distributions.Normal
    joint = normal(0, 1).log_prob(z).sum(-1) + normal(z @ W + shift, 1.0).log_prob(X[rows]).sum(-1)
    return joint - normal(LOC[rows], SCALE[rows]).log_prob(z).sum(-1)


@pytest.mark.parametrize("with_labels", [False, True])
@pytest.mark.parametrize("guide", [second, between, last, by_name, any_others])
def test_rows_wherever_they_are_asked_for(guide: Callable[..., None], with_labels: bool) -> None:
    """The weights are those by hand, with the given rows, by default 0 … N - 1."""
    y = Y if with_labels else None
    torch.manual_seed(3)
    found = ppl_gen.log_weights(model, guide, X, *([] if y is None else [y]), num_samples=50)
    torch.testing.assert_close(found, by_hand(torch.arange(N), y, 50, 3), rtol=1e-12, atol=1e-12)
    rows = torch.tensor([6, 0, 3])
    few = [X[rows], *([] if y is None else [y[rows]])]
    torch.manual_seed(4)
    found = ppl_gen.log_weights(model, guide, *few, index=rows, num_samples=50)
    expected = by_hand(rows, None if y is None else y[rows], 50, 4)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_rows_by_position() -> None:
    rows = torch.tensor([6, 0, 3])
    torch.manual_seed(4)
    found = ppl_gen.log_weights(lambda x: model(x), second, X[rows], rows, num_samples=50)
    torch.testing.assert_close(found, by_hand(rows, None, 50, 4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 3, 2048])
def test_rows_are_cut_with_their_images(chunk_size: int) -> None:
    """With the exact posterior of each image in its row, every weight is p(x)."""
    precision = torch.eye(UNITS, dtype=F64) + W @ W.T
    loc = torch.linalg.solve(precision, W @ X.T).T

    def guide(x: Tensor, index: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc[index], precision_matrix=precision))

    exact = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=F64), W.T @ W + torch.eye(3, dtype=F64))
    found = ppl_gen.log_marginal_likelihood(model, guide, X, num_samples=5, chunk_size=chunk_size)
    torch.testing.assert_close(found.log_px, exact.log_prob(X), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.elbo, exact.log_prob(X), rtol=1e-10, atol=1e-10)
    mixed = proposal_log_px(model, [guide, second], X, num_samples=400)
    assert float((mixed.log_px - exact.log_prob(X)).abs().max()) < 0.3  # a wrong row is off by nats
    wrong = ppl_gen.log_marginal_likelihood(model, guide, X.flip(0), num_samples=20)
    assert float((wrong.elbo - exact.log_prob(X.flip(0))).mean()) < -0.5


def test_a_model_that_asks() -> None:
    """A mixture of two components with a shift for each image: log p(x) by hand."""
    shift = torch.linspace(-1, 1, N, dtype=F64)
    prior = torch.tensor([0.3, 0.7], dtype=F64)

    def mixture(x: Tensor, index: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(prior), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(k.to(F64) + shift[index], 1.0), obs=x)

    x = X[:, 0]
    parts = torch.stack([torch.distributions.Normal(k + shift, 1.0).log_prob(x) + prior[k].log() for k in (0, 1)])
    torch.testing.assert_close(exact_log_px(mixture, x), parts.logsumexp(0))
    rows = torch.tensor([5, 2])
    torch.testing.assert_close(exact_log_px(mixture, x[rows], index=rows), parts.logsumexp(0)[rows])


def test_images_of_the_model_have_no_rows() -> None:
    with pytest.raises(BadInput, match="second has parameters for each of its images, but none for images from the"):
        importance_bounds(model, second, X, num_samples=5)


def test_no_rows_where_nobody_asks() -> None:
    assert as_arguments(X, (), {}, model, sample_from_x) == ((), {})
    (rows,), _ = as_arguments(X, (), {}, model, second)
    assert isinstance(rows, ByName) and rows["index"].tolist() == list(range(N))


def sample_from_x(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :UNITS], 1.0).to_event(1))


# Pyro's AutoNormal -------------------------------------------------------------------------------------------------


def wide(x: Tensor | None = None, *, n: int = 1) -> None:
    """Latents that are unbounded, positive, in an inner plate, and on a simplex."""
    with pyro.plate("data", n if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(ZERO, ONE).to_event(1))
        s = pyro.sample("s", dist.Gamma(torch.tensor(2.0, dtype=F64), 2.0))
        w = pyro.sample("w", dist.Dirichlet(torch.ones(3, dtype=F64)))
        pyro.sample("x", dist.Normal(z @ W + w, s.unsqueeze(-1) + 0.5).to_event(1), obs=x)


@pytest.fixture
def auto() -> AutoNormal:
    """Trained for some steps, so that every image has its own parameters."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    guide = AutoNormal(wide)
    svi = SVI(wide, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(50):
        svi.step(X)
    return guide


def equal_to(auto: AutoNormal) -> Callable[..., None]:
    """The same guide, by hand."""

    def guide(x: Tensor, index: Tensor) -> None:
        loc, scale = ({name: getattr(part, name)[index] for name in "zsw"} for part in (auto.locs, auto.scales))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc["z"], scale["z"]).to_event(1))
            pyro.sample("s", dist.LogNormal(loc["s"], scale["s"]))
            breaking = torch.distributions.StickBreakingTransform()
            base = dist.Normal(loc["w"], scale["w"]).to_event(1)
            pyro.sample("w", dist.TransformedDistribution(base, [breaking]))

    return guide


def test_autonormal_is_the_guide_by_hand(auto: AutoNormal) -> None:
    found = []
    for guide in (auto, equal_to(auto)):
        torch.manual_seed(5)
        found.append(ppl_gen.log_weights(wide, guide, X, num_samples=40))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    rows = torch.tensor([4, 1])
    found = []
    for guide in (auto, equal_to(auto)):
        torch.manual_seed(6)
        found.append(ppl_gen.log_weights(wide, guide, X[rows], index=rows, num_samples=40))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_autonormal_has_pyros_elbo(auto: AutoNormal) -> None:
    """Pyro's ELBO of all images from 20,000 draws, within 4.5 standard errors: a false alarm of 7e-6."""
    found = ppl_gen.log_marginal_likelihood(wide, auto, X, num_samples=20_000)
    torch.manual_seed(7)
    elbo = Trace_ELBO(1_000, max_plate_nesting=1, vectorize_particles=True)
    losses = torch.tensor([elbo.loss(wide, auto, X) for _ in range(20)], dtype=F64)
    error = math.hypot(float(losses.std()) / 20**0.5, float(found.elbo_mc_var.sum()) ** 0.5)
    assert abs(float(found.elbo.sum()) + float(losses.mean())) < 4.5 * error


def test_gradients_reach_autonormal(auto: AutoNormal) -> None:
    """Of the ELBO, and with a frozen guide (Roeder et al. 2017), equal to those of the guide by hand."""
    parameters = list(auto.parameters())
    for frozen in (False, True):
        gradients = []
        for guide in (auto, Holder(auto)):
            args, _ = as_arguments(X, (), {}, wide, guide)
            pair = Pair.read(wide, guide, X, *args)
            torch.manual_seed(8)
            loss = pair.terms(X, *args, num_samples=3, frozen_guide=frozen).log_weight.mean()
            gradients.append(torch.autograd.grad(loss, parameters))
        assert all(bool((each != 0).any(-1).all()) for each in gradients[0])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs)


class Holder(nn.Module):
    """A guide by hand, with the parameters of an AutoNormal."""

    def __init__(self, auto: AutoNormal):
        super().__init__()
        self.auto = auto

    def guide(self, x: Tensor, index: Tensor) -> None:
        equal_to(self.auto)(x, index)


def with_global(x: Tensor | None = None, *, n: int = 1) -> None:
    shift = pyro.sample("shift", dist.Normal(ZERO[0], 1.0))
    with pyro.plate("data", n if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(ZERO, ONE).to_event(1))
        pyro.sample("x", dist.Normal(z @ W + shift, 1.0).to_event(1), obs=x)


def test_what_is_refused(auto: AutoNormal) -> None:
    with pytest.raises(BadInput, match=r"set up with 7 images, but x has 3: give the row numbers .* index=…"):
        ppl_gen.log_weights(wide, auto, X[:3], num_samples=5)
    for wrong in (torch.arange(3), torch.arange(N) + 1, torch.arange(N) - 1, torch.arange(N).double(), "a"):
        with pytest.raises(BadInput, match=r"AutoNormal has rows 0 … 6: give the row number of each of the 7 images"):
            ppl_gen.log_weights(wide, auto, X, index=wrong, num_samples=5)
    with pytest.raises(BadInput, match="AutoNormal has no parameters yet"):
        ppl_gen.log_weights(wide, AutoNormal(wide), X, num_samples=5)
    joint = AutoDiagonalNormal(wide)
    joint(X)
    with pytest.raises(BadInput, match=r"AutoDiagonalNormal has parameters .*: use AutoNormal"):
        ppl_gen.log_weights(wide, joint, X, num_samples=5)
    over = AutoNormal(with_global)
    over(X)
    with pytest.raises(BadInput, match="share 0 plates instead of one over the images"):
        ppl_gen.log_weights(with_global, over, X, num_samples=5)


def test_rows_that_are_sliced() -> None:
    """A parameter with a row for each image, while all rows are still alike: it is read on more images than it has."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(12))
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(loc[: len(x)], 1.0))

    with pytest.raises(BadInput, match=r"fail on \d+ images, copies .* takes its rows by the argument `index`"):
        ppl_gen.log_weights(model, guide, torch.zeros(12), num_samples=5)
