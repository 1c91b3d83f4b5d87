"""Models that observe other values than their images, such as counts 255 x."""

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_gen import Comparison, Run
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.pair import Pair

PIXELS = 4
IMAGES = (
    (0.5 + 0.2 * torch.randn(60, 1, generator=torch.Generator().manual_seed(0))).expand(-1, PIXELS).clamp(0.01, 0.99)
)


class Scaled(nn.Module):
    """N(0, 1) of z, and N(factor (1 + z / 5) / 2, factor / 10) of factor x."""

    def __init__(self, *, factor: float = 16.0):
        super().__init__()
        self.factor, self.shift = factor, nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            mean = self.factor * (0.5 + self.shift + z / 10).expand(*z.shape[:-1], PIXELS)
            likelihood = dist.Normal(mean, self.factor / 10).to_event(1)
            drawn: Tensor = pyro.sample("x", likelihood, obs=None if x is None else self.seen(x))
            return drawn

    def seen(self, x: Tensor) -> Tensor:
        return self.factor * x


class Plain(Scaled):
    def __init__(self) -> None:
        super().__init__(factor=1.0)


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(8.0))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.weight * (x.mean(-1, keepdim=True) - 0.5), 0.5).to_event(1))


class Seen(Plain):
    """Observes another function of the images."""

    def __init__(self, function: Any):
        super().__init__()
        self.seen = function


@pytest.mark.parametrize(
    ("function", "same"),
    [
        (lambda x: x, True),
        (lambda x: x.double(), True),
        (lambda x: x.clamp(1e-3, 1 - 1e-3), True),
        (lambda x: x.logit(), False),
        (lambda x: (x > 0.5).to(x), False),
        (lambda x: x.flip(-1).cumsum(-1), False),
    ],
)
def test_what_is_observed(function: Any, same: bool) -> None:
    pair = Pair.read(Seen(function), Guide(), IMAGES)
    assert pair.observes_x is same
    if same:
        assert pair.draw_images(IMAGES)[0].shape == IMAGES.shape
        return
    for draw in (pair.draw_images, pair.dream):
        with pytest.raises(BadInput, match="Seen observes other values at 'x' than its images"):
            draw(IMAGES)


def _of_pixels(x: Tensor) -> None:
    """The plate of images is the rightmost one, and pixels have a plate of their own."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("pixels", x.shape[1], dim=-2):
            pyro.sample("x", dist.Normal(0.5 + z / 10, 0.1), obs=x.T)


def _of_images(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(8 * (x.float().mean(-1) - 0.5), 0.5))


def _bits(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Bernoulli(logits=z[..., None].expand(*z.shape, PIXELS)).to_event(1), obs=x.float())


def test_plates_and_types() -> None:
    """A value with the images in another dimension, or of another type, is x; and so is one of black images."""
    assert Pair.read(_of_pixels, _of_images, IMAGES).observes_x
    assert Pair.read(_bits, _of_images, IMAGES > 0.5).observes_x
    assert Pair.read(Seen(lambda x: x.clamp(1e-3, 1)), Guide(), torch.zeros(20, PIXELS)).observes_x


def test_black_images_do_not_hide_it() -> None:
    """16 x = x where x is 0: images from the whole batch are looked at."""
    x = torch.cat([torch.zeros(30, PIXELS), IMAGES[:30]])
    assert not Pair.read(Scaled(), Guide(), x).observes_x


def test_a_run(tmp_path: Path) -> None:
    """log p of 16 x is that of x less D log 16. It has a name of its own, and no images are drawn."""
    runs = []
    for model in (Plain, Scaled):
        options: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-6, "num_samples": 500, "quiet": True}
        data = {"train": IMAGES.reshape(-1, 2, 2), "test": IMAGES[:20].reshape(-1, 2, 2)}
        run = Run.fit(model, guide=Guide, data=data, binarization="none", out=tmp_path / model.__name__, **options)
        runs.append(run)
    plain, scaled = (run.evaluation.log_px.mean for run in runs)
    assert plain - scaled == pytest.approx(PIXELS * math.log(16), abs=1e-3)
    assert "log p(f(x))" in str(runs[1].evaluation) and "log p(x)" not in str(runs[1].evaluation)
    for use in (runs[1].calibrate, runs[1].sample, lambda: runs[1].evaluate(sandwich=10)):
        with pytest.raises(BadInput, match="observes other values at 'x' than its images"):
            use()
    with pytest.raises(BadInput, match="quantity"):
        Comparison([run.path for run in runs])
    with pytest.raises(BadInput, match="observes other values"):
        Run.fit(Scaled, guide=Guide, objective="wake-sleep", num_particles=2, data=data, binarization="none", **options)
