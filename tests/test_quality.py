"""`quality`: what is typed, what is written, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from pages import Page

from ppl_gen import fit, quality
from ppl_gen.core import cli
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.config import Config
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.models.gan import GAN
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]

FEW = ("--num-images", "300", "--classifier-steps", "150")


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config(
        "mixture",
        {"num_components": 20},
        "enumerated",
        data=DataOptions("digits", "static"),
        training=TrainingOptions(epochs=5, learning_rate=0.05),
        num_samples=30,
    )
    return Run.start(config, out=tmp_path_factory.mktemp("runs") / "mixture", quiet=True).directory.path


@pytest.fixture
def mixture(elsewhere: Path, fitted: Path) -> Path:
    return Path(shutil.copytree(fitted, elsewhere / "mixture"))


@pytest.mark.painted
def test_a_run(mixture: Path, call: Call) -> None:
    status, out, err = call(quality.command, "mixture", *FEW)
    assert status == 0, err
    found = json.loads((mixture / "quality.json").read_text(encoding="utf-8"))
    assert found["images"] == "draws" and found["num_images"] == 300
    assert found["classifier"]["accuracy"] > 0.7
    for part in (found, found["real_images"]):
        assert sum(part["classes"]["share"]) == pytest.approx(1)
        assert all(part[key]["se"] > 0 for key in ("frechet", "kernel", "precision", "recall"))
    assert found["frechet"]["mean"] > found["real_images"]["frechet"]["mean"] > 0
    assert "Fréchet distance" in out and f"{found['frechet']['mean']:.2f} ± {found['frechet']['se']:.2f}" in out
    page = (mixture / "report.html").read_text(encoding="utf-8")
    assert "How good are the samples?" in page and f"{found['recall']['mean']:.3f}" in page
    (again,) = Page(page).commands("quality")
    given = cli.parse(quality.Command, again, "", "")
    assert given.runs == (Path("mixture"),) and asdict(given.options) == found["options"]
    assert given.options == replace(
        cli.parse(quality.Command, ["r", *FEW], "", "").options, num_images=300, images="draws"
    )
    for name in ("sample_classes", "neighbours"):
        assert (mixture / "figures" / f"{name}.png").stat().st_size > 5000
    assert call(quality.command, "mixture", *FEW)[0] == 0
    again = json.loads((mixture / "quality.json").read_text(encoding="utf-8"))
    assert again | {"seconds": 0} == found | {"seconds": 0}


def test_means_against_grey_values_and_several_runs(
    mixture: Path, elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GAN, "evaluation_defaults", {"num_images": 5})
    quick = ("--data", "digits", "--epochs", "1", "--train-size", "200", "--latent-dim", "4", "--hidden-dims", "16")
    assert call(fit.command, "gan", *quick, "--out", "gan")[0] == 0
    status, out, err = call(quality.command, "gan", "mixture", "--images", "means", *FEW)
    assert status == 0, err
    assert out.count("300 means E[x | z] compared with as many test images of digits, grey values") == 2
    status, out, err = call(quality.command, "gan", *FEW)
    assert status == 0, err
    assert json.loads((elsewhere / "gan" / "quality.json").read_text(encoding="utf-8"))["images"] == "means"


def test_own_images_without_labels_are_refused(elsewhere: Path, call: Call) -> None:
    rng = np.random.default_rng(0)
    np.save("mine.npy", rng.random((400, 5, 5)))
    options = ("--data", "mine.npy", "--epochs", "1", "--num-components", "2", "--out", "mine")
    assert call(fit.command, "mixture", *options)[0] == 0
    status, _, err = call(quality.command, "mine", "--num-images", "20")
    assert status == 2
    assert "has no labels, but the classifier needs them" in err
    assert not (elsewhere / "mine" / "quality.json").exists()


def test_labels_of_any_kind(elsewhere: Path, call: Call) -> None:
    """Classes are what labels differ in; nothing is done for several runs if one of them cannot be judged."""
    rng = np.random.default_rng(0)
    labels = np.repeat([-1, 7], [120, 120])
    images = (rng.random((240, 4, 4)) < np.where(labels == 7, 0.8, 0.2)[:, None, None]).astype(float)
    shuffled = rng.permutation(240)
    images, labels = images[shuffled], labels[shuffled]
    parts = {"train": slice(0, 180), "test": slice(180, 240)}
    for name, numbers in (("two", labels), ("all", np.arange(240))):
        arrays = {key: images[part] for key, part in parts.items()}
        np.savez(f"{name}.npz", **arrays, **{f"{key}_labels": numbers[part] for key, part in parts.items()})
        options = ("--data", f"{name}.npz", "--binarization", "static", "--epochs", "1", "--num-components", "2")
        status, _, err = call(fit.command, "mixture", *options, "--out", name)
        assert status == 0, err
    few = ("--num-images", "40", "--classifier-steps", "60")
    status, _, err = call(quality.command, "two", "all", *few)
    assert status == 2 and "different labels for" in err and not Path("two/quality.json").exists()
    assert call(quality.command, "two", "nowhere", *few)[0] == 2 and not Path("two/quality.json").exists()
    status, _, err = call(quality.command, "two", *few)
    assert status == 0, err
    found = json.loads(Path("two/quality.json").read_text(encoding="utf-8"))
    assert found["classes"]["labels"] == [-1, 7]
    assert found["classifier"]["accuracy"] > 0.9
    status, _, err = call(quality.command, "two", "--num-images", "60", "--classifier-steps", "5")
    assert status == 0, err  # 60 of the training images are kept from the classifier


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name at least one run"),
        (("mixture", "--num-images", "10"), "--num-images 10: must be at least 20"),
        (("mixture", "--num-images", "301"), "--num-images 301: the test split has 300"),
        (("mixture", "--classifier-steps", "0"), "--classifier-steps 0"),
        (("mixture", "--seed", "-1"), "--seed -1"),
        (("nowhere",), "nowhere"),
    ],
)
def test_bad_options(mixture: Path, call: Call, arguments: tuple[str, ...], message: str) -> None:
    status, _, err = call(quality.command, *arguments)
    assert status == 2
    assert message in err
    assert not (mixture / "quality.json").exists()
