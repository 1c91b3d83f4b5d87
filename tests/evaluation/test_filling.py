"""Filling in: which pixels are hidden, and by which guides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairs import ExactGuide, LinearGaussian
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation import filling
from ppl_gen.experiment.config import Config, Given
from ppl_gen.experiment.fitted import Assembled

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

    from ppl_gen.inference.pair import Pair

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
