"""Distributions of grey levels, against sums over all values and against equations written out."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.data.splits import Split
from ppl_gen.networks.levels import CategoricalLevels, DiscretizedLogisticMixture, LevelOutput, Levels, LevelVector
from ppl_gen.networks.observed import observed_log_prob
from ppl_gen.networks.supports import inside, is_discrete


def _parameters(channels: int, components: int, positions: int, seed: int = 0) -> Tensor:
    numbers = components * DiscretizedLogisticMixture.numbers_per_component(channels)
    return 1.5 * torch.randn(4, numbers, positions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _all_images(levels: int, pixels: int) -> Tensor:
    images = list(itertools.product(range(levels), repeat=pixels))
    return torch.tensor(images, dtype=torch.float64) / (levels - 1)


@pytest.mark.parametrize("levels", [2, 3, 17, 100, 255, 256])
def test_levels_are_found_again_exactly(levels: int) -> None:
    """x = k / (L - 1) in float32, as a data set gives it and as an image is drawn, is level k."""
    images = torch.arange(levels, dtype=torch.uint8).reshape(1, -1)
    x = Split(images, scale=levels - 1).pixels()
    logits = torch.randn(levels, levels, generator=torch.Generator().manual_seed(0))
    expected = logits.log_softmax(0).diagonal()
    torch.testing.assert_close(CategoricalLevels(logits).log_prob(x), expected.sum()[None])
    certain = CategoricalLevels(1e4 * torch.eye(levels)).sample((3,))
    assert torch.equal(certain, x.expand(3, -1))
    assert Levels(levels).check(x).all()
    assert not Levels(levels).check(x[:, :-1] + 0.3 / (levels - 1)).any()


@pytest.mark.parametrize("extreme", [False, True])
def test_probabilities_of_256_levels_sum_to_one(extreme: bool) -> None:
    x = (torch.arange(256, dtype=torch.float64) / 255)[:, None, None]
    parameters = _parameters(1, 5, 1) * (100 if extreme else 1)
    logits = torch.randn(4, 256, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for each in (DiscretizedLogisticMixture(parameters, 256), CategoricalLevels(logits * (100 if extreme else 1))):
        total = each.log_prob(x).exp().sum(0)
        torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "levels"), [(1, 4), (2, 4), (3, 3), (3, 5)])
def test_probabilities_of_color_images_sum_to_one(channels: int, levels: int) -> None:
    """All images of two positions (of one, where there are too many), for four sets of parameters."""
    positions = 2 if levels**channels < 50 else 1
    found = DiscretizedLogisticMixture(_parameters(channels, 3, positions), levels, channels)
    images = _all_images(levels, channels * positions)
    total = found.log_prob(images.unsqueeze(1)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)


def _written_out(parameters: Tensor, pixel: list[int], levels: int) -> float:
    """P of one position of one image by equations 1 to 3 of Salimans et al. (2017), with sums of plain numbers."""
    channels = len(pixel)
    numbers = parameters.tolist()
    size = len(numbers) // DiscretizedLogisticMixture.numbers_per_component(channels)
    groups = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    x = [2 * level / (levels - 1) - 1 for level in pixel]
    total = 0.0
    for i in range(size):
        mean = [groups[1 + channel][i] for channel in range(channels)]
        scale = [math.exp(groups[1 + channels + channel][i]) for channel in range(channels)]
        coefficient = [math.tanh(group[i]) for group in groups[1 + 2 * channels :]]
        if channels == 3:
            mean[1] += coefficient[0] * x[0]
            mean[2] += coefficient[1] * x[0] + coefficient[2] * x[1]
        product = math.exp(groups[0][i]) / sum(map(math.exp, groups[0]))
        for channel, level in enumerate(pixel):
            half = 1 / (levels - 1)
            up = scipy.stats.logistic.cdf(x[channel] + half, mean[channel], scale[channel])
            low = scipy.stats.logistic.cdf(x[channel] - half, mean[channel], scale[channel])
            product *= (1 if level == levels - 1 else up) - (0 if level == 0 else low)
        total += product
    return total


@pytest.mark.parametrize(("channels", "levels"), [(1, 256), (1, 2), (3, 256), (3, 4)])
def test_log_prob_by_the_equations(channels: int, levels: int) -> None:
    parameters = _parameters(channels, 4, 3, seed=2)[0]
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(levels, (channels, 3), generator=generator)
    image[:, 0], image[:, 1] = 0, levels - 1  # the ends of the scale
    expected = sum(math.log(_written_out(parameters[:, d], image[:, d].tolist(), levels)) for d in range(3))
    found = DiscretizedLogisticMixture(parameters, levels, channels).log_prob(image.flatten().double() / (levels - 1))
    assert float(found) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["categorical", "grey", "color"])
def test_draws_have_the_probabilities(kind: str) -> None:
    """The chi-squared test of 20,000 draws of all values. A right sampler fails it with probability 1e-4."""
    torch.manual_seed(5)
    if kind == "categorical":
        found: LevelVector = CategoricalLevels(torch.randn(4, 3, dtype=torch.float64))
        images = _all_images(4, 3)
    else:
        channels = 3 if kind == "color" else 1
        found = DiscretizedLogisticMixture(_parameters(channels, 3, 1)[0], 5, channels)
        images = _all_images(5, channels)
    p = found.log_prob(images).exp()
    draws = found.sample((20_000,))
    base = found.num_levels ** torch.arange(images.shape[1] - 1, -1, -1)
    counts = ((draws * (found.num_levels - 1)).round().long() @ base).bincount(minlength=len(p)).double()
    often = p > 5 / 20_000
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    expected = 20_000 * torch.cat([p[often], p[~often].sum()[None]])
    keep = expected > 0
    statistic = float(((observed - expected).square() / expected)[keep].sum())
    assert scipy.stats.chi2.sf(statistic, int(keep.sum()) - 1) > 1e-4
    assert inside({"fn": found, "value": draws, "mask": None}).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_gradients_are_finite_at_extremes(channels: int, size: float) -> None:
    """Parameters up to 10,000 in float32, for pixels at both ends of the scale and between them."""
    generator = torch.Generator().manual_seed(0)
    numbers = 16 if channels == 0 else 4 * DiscretizedLogisticMixture.numbers_per_component(channels)
    parameters = size * torch.randn(50, numbers, 3, generator=generator)
    parameters.requires_grad_()
    levels = torch.tensor([0, 7, 15]).repeat(max(1, channels)) / 15
    found = CategoricalLevels(parameters) if channels == 0 else DiscretizedLogisticMixture(parameters, 16, channels)
    log_p = found.log_prob(levels)
    log_p.sum().backward()
    assert log_p.isfinite().all() and (log_p <= 0).all()
    assert parameters.grad is not None and parameters.grad.isfinite().all()


def test_mean_is_the_sum_over_levels() -> None:
    x = (torch.arange(7, dtype=torch.float64) / 6)[:, None, None]
    logits = torch.randn(4, 7, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for each in (DiscretizedLogisticMixture(_parameters(1, 3, 1), 7), CategoricalLevels(logits)):
        torch.testing.assert_close(each.mean, (each.log_prob(x).exp().unsqueeze(-1) * x).sum(0))


def test_mean_of_color_is_near_the_sum_over_levels() -> None:
    """Red is exact. Green and blue are off by less than 0.07, at these wide distributions."""
    found = DiscretizedLogisticMixture(_parameters(3, 3, 1), 8, 3)
    images = _all_images(8, 3)
    mean = torch.einsum("nb,nd->bd", found.log_prob(images.unsqueeze(1)).exp(), images)
    torch.testing.assert_close(found.mean[:, 0], mean[:, 0])
    assert 0.001 < (found.mean - mean).abs().max() < 0.07


def test_under_a_plate_and_with_samples() -> None:
    """Parameters [samples, images, …] against images, and `expand`, which copies nothing."""
    parameters = torch.randn(3, 2, 15, 4, generator=torch.Generator().manual_seed(0))
    x = DiscretizedLogisticMixture(parameters[0], 256).sample()
    both = DiscretizedLogisticMixture(parameters, 256)
    each = torch.stack([DiscretizedLogisticMixture(part, 256).log_prob(x) for part in parameters])
    torch.testing.assert_close(both.log_prob(x), each)
    with pyro.plate("data", 2):
        drawn = pyro.sample("x", DiscretizedLogisticMixture(parameters[0, 0], 256))
    assert drawn.shape == (2, 4)
    one = CategoricalLevels(torch.zeros(5, 4)).expand((7,))
    assert one.log_prob(torch.zeros(4)).shape == (7,) and one.sample().shape == (7, 4) and one.mean.shape == (7, 4)
    with pytest.raises(ValueError, match="whole components"):
        DiscretizedLogisticMixture(torch.zeros(4, 2), 256)


def test_support_and_missing_pixels() -> None:
    grey = CategoricalLevels(torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)))
    assert is_discrete(grey)
    between = torch.tensor([[0.0, 0.25, 0.3], [0.0, 0.25, 1.0]])
    assert inside({"fn": grey, "value": between, "mask": None}).tolist() == [False, True]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="support"):
        CategoricalLevels(grey.parameters, validate_args=True).log_prob(between)
    x = torch.tensor([[0.0, 0.25, torch.nan], [torch.nan, torch.nan, 1.0]])
    terms = grey.parameters.log_softmax(1)
    expected = torch.stack([terms[0, 0, 0] + terms[0, 1, 1], terms[1, 4, 2]])
    torch.testing.assert_close(observed_log_prob(grey, x), expected)
    assert CategoricalLevels(grey.parameters, validate_args=False).log_prob(x).isnan().all()
    color = DiscretizedLogisticMixture(torch.zeros(10, 1), 256, channels=3)
    with pytest.raises(BadInput, match="channels of this likelihood depend"):
        observed_log_prob(color, x[0])


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3), (3, 2, 3)])
@pytest.mark.parametrize("logistics", [None, 1, 4])
def test_output_starts_near_the_pixels(shape: tuple[int, ...], logistics: int | None) -> None:
    """The output that a decoder starts from gives training images more than a uniform distribution gives them."""
    generator = torch.Generator().manual_seed(0)
    near = 100 + 30 * torch.rand(math.prod(shape), generator=generator)
    examples = (near + 5 * torch.randn(500, len(near), generator=generator)).round() / 255
    output = LevelOutput(shape, 256, logistics)
    assert math.prod(output.shape) == output.start(None).numel() == output.start(examples).numel()
    found = output.distribution(output.start(examples))
    assert found.event_shape == (math.prod(shape),)
    assert (found.mean - examples.mean(0)).abs().max() < 0.03
    bits = -float(found.log_prob(examples).mean()) / (len(near) * math.log(2))
    # The entropy of these pixels is 4.4 bits. Frequencies of a level among few images, and a mixture that is wider.
    assert bits < 5.6
    uniform = output.distribution(output.start(None)).log_prob(examples)
    assert found.log_prob(examples).mean() > uniform.mean()


def test_categorical_is_torchs() -> None:
    logits = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([0, 3, 200, 255])
    expected = dist.Categorical(logits=logits.T).log_prob(levels).sum()
    torch.testing.assert_close(CategoricalLevels(logits).log_prob(levels / 255), expected)
