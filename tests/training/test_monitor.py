"""The images that bounds are measured on after each epoch."""

from pathlib import Path

import numpy as np
import pytest
from fits import CONFIG, small_config

from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.config import Given
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.training import monitor


def test_training_images_in_the_order_of_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty of a hundred, of which the first sixty are black: three in five are black there, too. Of a named data set
    they are the first."""
    monkeypatch.setattr(monitor, "_TRAINING_IMAGES", 20)
    images = np.zeros((100, 2, 2), np.uint8)
    images[60:] = 1
    own = load_data(DataOptions("array"), {"train": images, "validation": images, "test": images})
    for data in (own, load_data(DataOptions("digits", train_size=200))):
        model, guide = assemble(small_config(), data)
        run = RunDirectory.create(tmp_path / data.name, "run", CONFIG)
        fitted = Fitted(small_config(), model, guide, data, Given(), run)
        found = monitor.Monitor(fitted, fitted.pair).images
        assert len(found["train"][0]) == 20 and len(found["validation"][0]) == len(data.validation)
        expected = data.targets("train")[::5] if data is own else data.targets("train")[:20]
        assert (found["train"][0] == expected).all()
    assert own.targets("train")[::5].mean() == 0.4


def test_fewer_than_twice_as_many_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second one: the first twenty of thirty would leave out the end of a file."""
    monkeypatch.setattr(monitor, "_TRAINING_IMAGES", 20)
    images = np.arange(120, dtype=np.uint8).reshape(30, 2, 2) % 2
    images[20:] = 1
    data = load_data(DataOptions("array"), {"train": images, "validation": images, "test": images})
    model, guide = assemble(small_config(), data)
    fitted = Fitted(small_config(), model, guide, data, Given(), RunDirectory.create(tmp_path / "run", "run", CONFIG))
    assert (monitor.Monitor(fitted, fitted.pair).images["train"][0] == data.targets("train")[::2]).all()
