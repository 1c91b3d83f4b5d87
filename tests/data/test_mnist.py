"""What is known of MNIST itself, where it is on disk."""

import math
import os
from pathlib import Path

import pytest
import torch
from fits import CONFIG

from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.config import Config, Given
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.training.loop import train

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("PPL_GEN_DATA", ROOT / "data")).resolve()

pytestmark = pytest.mark.skipif(not (FOLDER / "MNIST" / "raw").is_dir(), reason="MNIST is not on disk")


@pytest.fixture(autouse=True)
def _data(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPL_GEN_DATA", str(FOLDER))


def test_splits() -> None:
    data = load_data(DataOptions())
    assert data.name == "mnist" and data.notice == ""
    assert (len(data.train), len(data.validation), len(data.test)) == (50_000, 10_000, 10_000)
    grey = load_data(DataOptions(data="mnist", binarization="none", train_size=60_000))
    assert grey.mean().mean().item() == pytest.approx(0.1307, abs=1e-4)  # the mean pixel of the training images
    assert data.test.labels is not None and data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_its_files_by_name() -> None:
    """An IDX file, named itself, is read as the data set is, with what lies beside it."""
    data = load_data(DataOptions(str(FOLDER / "MNIST" / "raw" / "train-images-idx3-ubyte"), "none"))
    mnist = load_data(DataOptions("mnist", "none"))
    assert (len(data.train), len(data.validation)) == (54_000, 6_000)
    assert data.shape == (28, 28) and torch.equal(data.test.images, mnist.test.images)
    assert data.test.labels is not None and torch.equal(data.test.labels, mnist.test.labels)


def test_the_bound_at_the_start_and_after_an_epoch(tmp_path: Path) -> None:
    """From -784 log 2 = -543.4, less the KL, to -129 or so: 5 nats are left for other orders of the sums."""
    config = Config(
        model_options={"init_output_bias": False},
        data=DataOptions(data="mnist", binarization="none"),
        training=TrainingOptions(epochs=1),
    )
    data, run = load_data(config.data), RunDirectory.create(tmp_path / "run", "run", CONFIG)
    train(Fitted(config, *assemble(config, data), data, Given(), run), quiet=True)
    start, end = (line["validation"] for line in run.metrics())
    assert start["reconstruction"] == pytest.approx(-784 * math.log(2), abs=1e-2)
    assert -545 < start["elbo"] < -543
    assert -140 < end["elbo"] < -120
