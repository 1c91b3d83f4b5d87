"""Filling in: which pixels are hidden, and by which guides."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pairs import ExactGuide, LinearGaussian
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation import filling
from ppl_gen.experiment.config import Config, Given
from ppl_gen.experiment.fitted import Assembled
from ppl_gen.guides.exact_gaussian import ExactGaussian
from ppl_gen.inference.pair import Pair
from ppl_gen.models.factor_analysis import FactorAnalysis

F64 = torch.float64


def test_masks(tmp_path: Path) -> None:
    shape = (3, 5)
    seen = {side: filling.visible_pixels(side, shape).reshape(shape) for side in filling.SIDES}
    assert torch.equal(seen["left"], ~seen["right"]) and torch.equal(seen["top"], ~seen["bottom"])
    assert (~seen["left"]).sum(1).tolist() == [2, 2, 2] and (~seen["top"]).sum(1).tolist() == [5, 0, 0]
    three, one = (~filling.visible_pixels(hide, (2, 4)).reshape(2, 4) for hide in filling.QUADRANTS)
    assert three.int().tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]] and one.int().tolist() == [[0] * 4, [0, 0, 1, 1]]
    random = filling.visible_pixels("random", (40, 40), 1)
    assert abs(random.double().mean().item() - 0.5) < 4 * 0.5 / 40  # once in 16,000 seeds
    assert torch.equal(random, filling.visible_pixels("random", (40, 40), 1))
    file = tmp_path / "mask.npy"
    for mask in ((~seen["left"]).numpy(), (~seen["left"]).int().numpy().ravel()):
        np.save(file, mask)
        assert torch.equal(filling.visible_pixels(str(file), shape), seen["left"].flatten())


def test_filling_in_takes_a_guide_that_can_be_shown_another_image() -> None:
    """A guide without encode and posterior, and a model with two latent sites, are refused in a sentence."""
    from pairs import TwoLayers

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


def test_a_guide_that_knows_what_to_do_without_a_pixel() -> None:
    """The posterior of factor analysis is p(z | x_v): every weight is p(x_v), a marginal normal in closed form."""
    torch.manual_seed(0)
    model = FactorAnalysis(6, latent_dim=2).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    guide, x = ExactGaussian("z", model), torch.randn(20, 6, dtype=F64)
    visible = torch.arange(6) < 2
    data: Any = SimpleNamespace(train=SimpleNamespace(missing=None))
    assembled = Assembled(Config(), model, guide, data, Given())
    vars(assembled)["pair"] = Pair.read(model, guide, x)
    found = filling.impute(assembled, x, visible, 50, quiet=True)
    covariance = model.weight.T @ model.weight + model.psi.diag()
    marginal = dist.MultivariateNormal(model.loc[visible], covariance[visible][:, visible])
    torch.testing.assert_close(found.log_px_visible, marginal.log_prob(x[:, visible]).detach(), rtol=0, atol=1e-9)
    assert found.importance is not None and not found.importance[1].untrusted.any()
