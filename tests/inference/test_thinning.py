"""The gradient through few of many samples has the right mean, exactly, and is refused where it would not; float64."""

import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from affine import F64, Affine, TwoLayerGuide
from affine import gradient as gradient_in
from pairs import DiagonalNormal, LinearGaussian, TwoLayers
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.hierarchical_bernoulli import HierarchicalBernoulli
from ppl_gen.guides.mixture import Mixture
from ppl_gen.inference import thinning
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.thinning import choose
from ppl_gen.models.hierarchical_belief_net import HierarchicalBeliefNet
from ppl_gen.models.vae import VAE


def _probabilities(share: Tensor, count: int) -> Tensor:
    """The probability of each sample of one image, read from what is chosen at many offsets."""
    offsets = torch.arange(20_000, dtype=F64) / 20_000
    index, factor = choose(share.expand(-1, len(offsets)), count, offsets)
    assert index.shape == factor.shape == (count, len(offsets)) and (index.diff(dim=0) > 0).all()
    found = torch.full_like(share[:, 0], torch.nan)
    found[index.flatten()] = 1 / factor.flatten()
    return found


def _intervals(probability: Tensor) -> list[tuple[float, float]]:
    """Where the choice does not depend on the offset: the middle and the length of each interval of offsets."""
    ends = sorted({0.0, 1.0, *(1 - probability.cumsum(0) % 1).tolist()})
    return [((low + high) / 2, high - low) for low, high in pairwise(ends) if high - low > 1e-9]


@pytest.mark.parametrize(
    "log_weight", [[0.0] * 6, [0.0, -1.0, -2.0, -3.0, -4.0, -5.0], [0.0, -1.0, -9.0, -9.0, -30.0, -800.0]]
)
@pytest.mark.parametrize("count", [1, 3, 5])
def test_samples_are_chosen_as_often_as_is_said(log_weight: list[float], count: int) -> None:
    """The probabilities sum to the number of samples, grow with the weights up to 1, and are those of the choice."""
    share = torch.tensor(log_weight, dtype=F64).softmax(0)[:, None]
    probability = _probabilities(share, count)
    assert probability.sum() == pytest.approx(count) and (probability <= 1).all() and (probability > 0).all()
    assert (probability.diff() <= 1e-12).all()
    below = probability < 1 - 1e-9
    ratios = probability[below] / (share[:, 0] + 0.01 / 6)[below]
    assert ratios.numel() == 0 or ratios.max() == pytest.approx(float(ratios.min()))
    often = torch.zeros_like(probability)
    for middle, length in _intervals(probability):
        index, _ = choose(share, count, torch.tensor([middle], dtype=F64))
        often[index[:, 0]] += length
    torch.testing.assert_close(often, probability, atol=1e-6, rtol=0)


def test_each_image_has_its_own_samples() -> None:
    share = torch.tensor([[0.98, 0.0], [0.02, 0.1], [0.0, 0.9]], dtype=F64)
    index, factor = choose(share, 1, torch.tensor([0.5, 0.5], dtype=F64))
    assert index.tolist() == [[0, 2]] and factor.shape == (1, 2)


def _pairs() -> dict[str, tuple[Any, Any]]:
    torch.manual_seed(0)
    linear = LinearGaussian(3, 2)
    net = HierarchicalBeliefNet(3, latent_dims=(3, 2)).double()
    return {
        "discrete": (net, HierarchicalBernoulli(3, torch.full((3,), 0.4), net, baseline="none").double()),
        "functions": (linear, Affine(linear)),
        "two layers": (TwoLayers(), TwoLayerGuide()),
        "methods": (linear, _NormalGuide()),
    }


class _NormalGuide(DiagonalNormal):
    """An amortized guide with the two methods that stand for its function."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 4, dtype=F64)

    def encode(self, x: Tensor) -> Tensor:
        return self.net(x)


def _over_choices(
    step: Callable[[], Tensor], backward: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, list[Tensor]]:
    """The mean of the gradients of a step over all choices of samples, and these gradients."""
    shares: list[Tensor] = []
    offset = 0.0

    def chosen(share: Tensor, count: int, _: Tensor) -> tuple[Tensor, Tensor]:
        shares.append(share)
        return choose(share, count, torch.tensor([offset], dtype=F64))

    monkeypatch.setattr(thinning, "choose", chosen)
    step()
    mean, gradients = torch.zeros(()), []
    for offset, length in _intervals(_probabilities(shares[0], backward)):  # noqa: B007 (read by `chosen`)
        gradients.append(step())
        mean = mean + length * gradients[-1]
    return mean, gradients


@pytest.mark.parametrize("backward", [1, 3, 5])
@pytest.mark.parametrize(
    "kind, name",
    [
        *product(["functions", "two layers", "methods"], ["dreg", "iwae", "vimco", "rws"]),
        ("discrete", "vimco"),
        ("discrete", "rws"),
    ],
)
def test_the_mean_gradient_is_that_of_all_samples(
    kind: str, name: str, backward: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the same six samples, the loss is that of all of them, and the mean of the gradient over all choices is their
    gradient, in the parameters of the model and of the guide."""
    model, guide = _pairs()[kind]
    x = torch.randn(1, 3, dtype=F64).sign().relu()
    pair = Pair.read(model, guide, x)
    assert (pair.direct is not None) == (kind == "methods")
    modules = nn.ModuleList([model, guide])

    def step(**options: Any) -> tuple[Tensor, Tensor]:
        elbo = bind(construct(name, num_particles=6, options=options), pair, x)
        torch.manual_seed(5)
        loss = elbo.differentiable_loss(pair.model, pair.guide, x)
        return loss.detach(), gradient_in(loss, modules)

    loss, gradient = step()
    torch.testing.assert_close(step(backward=backward)[0], loss)
    mean, gradients = _over_choices(lambda: step(backward=backward)[1], backward, monkeypatch)
    torch.testing.assert_close(mean, gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))
    if list(model.parameters()):  # the gradient of these takes what is chosen
        assert sum(not torch.allclose(each, gradient) for each in gradients) > 1


class _Beside(LinearGaussian):
    """A model whose likelihood has a layer with noise or with statistics of a batch."""

    def __init__(self, layer: nn.Module):
        super().__init__(3, 2)
        self.layer = layer

    def likelihood(self, z: Tensor) -> dist.Distribution:
        return super().likelihood(self.layer(z.flatten(0, -2)).view_as(z))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(2, dtype=F64)])
def test_noise_and_batch_statistics_are_refused(layer: nn.Module) -> None:
    """The second run of the model would be another function. Its buffers are left as they were."""
    torch.manual_seed(0)
    model, x = _Beside(layer), torch.randn(4, 3, dtype=F64)
    guide = Affine(model)
    before = [buffer.clone() for buffer in model.buffers()]
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x)
        with pytest.raises(BadInput, match="noise beside z, or statistics of a batch; leave it out"):
            bind(construct("dreg", num_particles=6, options={"backward": 2}), pair, x)
        bind(construct("dreg", num_particles=6), pair, x)
    assert layer.training and all(map(torch.equal, before, model.buffers()))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(2, dtype=F64)])
def test_a_fixed_model_has_no_noise(layer: nn.Module) -> None:
    """Training leaves it in eval mode."""
    torch.manual_seed(0)
    model, x = _Beside(layer).requires_grad_(False), torch.randn(4, 3, dtype=F64)
    guide = Affine(model)
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x)
        loss = bind(construct("dreg", num_particles=6, options={"backward": 2}), pair, x)
    model.eval()
    assert loss.differentiable_loss(pair.model, pair.guide, x).isfinite()


def test_what_needs_all_samples_is_refused() -> None:
    model = VAE((1, 5), latent_dim=2, hidden_dims=(4,))
    guide, x = Mixture((1, 5), 2, "z", model), torch.bernoulli(torch.full((4, 5), 0.5))
    with pytest.raises(BadInput, match="the discrete choice of Mixture needs all samples"):
        bind(construct("dreg", num_particles=6, options={"backward": 2}), Pair.read(model, guide, x), x)
    for backward in (0, 6):
        with pytest.raises(BadInput, match=f"objective.backward {backward}: must be at least 1 and below the number"):
            construct("dreg", num_particles=6, options={"backward": backward})


class _OwnBound:
    """An importance-weighted bound of a user, whose gradient may go through some of the samples."""

    num_particles = 6

    def __init__(self, draws: str, backward: int | None):
        self.draws, self.backward = draws, backward

    def surrogate(self, terms: Any) -> Tensor:
        return (terms.log_likelihood + terms.log_prior - terms.log_guide).logsumexp(0) - math.log(6)


@pytest.mark.parametrize("kind", ["functions", "methods"])
@pytest.mark.parametrize("draws", ["reparametrized", "frozen-guide"])
def test_an_objective_of_a_user(kind: str, draws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With five of six samples, the mean gradient over all choices is that of six, in the way that z is drawn."""
    model, guide = _pairs()[kind]
    x = torch.randn(1, 3, dtype=F64)
    pair, modules = Pair.read(model, guide, x), nn.ModuleList([model, guide])

    def step(backward: int | None) -> Tensor:
        elbo = bind(_OwnBound(draws, backward), pair, x)  # type: ignore[arg-type]
        torch.manual_seed(5)
        return gradient_in(elbo.differentiable_loss(pair.model, pair.guide, x), modules)

    gradient, (mean, _) = step(None), _over_choices(lambda: step(5), 5, monkeypatch)
    torch.testing.assert_close(mean, gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))


def test_an_own_objective_with_two_surrogates_is_refused() -> None:
    class Two(_OwnBound):
        def guide_surrogate(self, terms: Any) -> Tensor:
            return self.surrogate(terms)

    model, guide = _pairs()["functions"]
    x = torch.randn(1, 3, dtype=F64)
    for objective, said in (
        (Two("reparametrized", 2), "not with guide_surrogate"),
        (_OwnBound("reparametrized", 6), "below the number of samples, 6"),
    ):
        with pytest.raises(BadInput, match=said):
            bind(objective, Pair.read(model, guide, x), x)  # type: ignore[arg-type]
