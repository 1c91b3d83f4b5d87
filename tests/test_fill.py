"""`fill`: what is typed, what is written, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import REFUSED, Call, read, refused

import ppl_gen
from ppl_gen import fill, fit
from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation import filling


@pytest.mark.parametrize("name", ["mixture", "belief-net", "vae"])
@pytest.mark.parametrize("hide", ["left", "random", "mask.npy"])
def test_fill(three_runs: Path, call: Call, name: str, hide: str) -> None:
    np.save("mask.npy", np.arange(64).reshape(8, 8) % 3 == 0)
    status, out, err = call(fill.command, name, "--hide", hide, "--num-images", "12", "--num-samples", "20")
    assert status == 0, err
    assert "log p(hidden | visible)" in out
    found = read(f"{name}/fill.json")
    at_random = 64 - int(filling.visible_pixels("random", (8, 8), 0).sum())
    assert found["hidden_pixels"] == {"left": 32, "mask.npy": 22, "random": at_random}[hide]
    assert found["estimator"] == ("importance" if name == "vae" else "exact")
    difference = found["log_px"]["mean"] - found["log_px_visible"]["mean"]
    assert found["log_p_hidden"]["mean"] == pytest.approx(difference)
    assert ("ess" in found) == (name == "vae")
    doubted = [bool(found[key].get("at_least")) for key in ("log_px", "log_px_visible")]  # of 20 samples each
    lines = out.splitlines()[2:5]
    assert ["at least" in line for line in lines[:2]] == doubted == [name == "vae"] * 2
    assert [bool(found["log_p_hidden"].get(key)) for key in ("at_least", "at_most")] == doubted
    assert ("log p(hidden | visible)  about" in lines[2]) == (name == "vae")
    bits = found["log_p_hidden"]["mean"] / -np.log(2) / found["hidden_pixels"]
    assert found["log_p_hidden"]["bits_per_hidden_pixel"] == pytest.approx(bits)
    assert found["independent_pixels"]["mean"] < 0
    assert Path(f"{name}/figures/fill.png").is_file()
    assert "Hidden pixels" in Path(f"{name}/report.html").read_text(encoding="utf-8")


def test_images_that_hide_different_numbers_of_pixels(elsewhere: Path) -> None:
    """Errors are over all hidden pixels, whatever image they are of, with the standard error of the jackknife over
    images. Nothing can be said of a pixel that no training image has, and of images that hide none."""
    generator = np.random.default_rng(0)
    images = (generator.random((3000, 4, 4)) < 0.5).astype(np.uint8)
    missing = np.zeros(images.shape, bool)
    missing[::10, :, 2:], missing[5::10, 0, 0] = True, True
    few: dict[str, Any] = {"epochs": 1, "latent_dim": 2, "hidden_dims": (8,), "num_samples": 30, "quiet": True}
    run = ppl_gen.Run.fit("vae", data=images, missing=missing, out="some", **few)
    found = run.fill(num_images=300, quiet=True)
    hidden, x = ~found.visible, found.x
    error = found.summary["error"]["model"]
    off = (found.imputation.mean > 0.5) != (x > 0.5)
    rate = float(off[hidden].double().mean())
    assert error["wrong"]["mean"] == pytest.approx(rate) and 0.3 < rate < 0.7
    assert error["rmse"] == pytest.approx(float((found.imputation.mean - x)[hidden].square().mean().sqrt()), rel=1e-5)
    others = [torch.arange(300) != image for image in range(300)]
    without = torch.stack([(off & hidden)[rows].sum() / hidden[rows].sum() for rows in others]).double()
    jackknife = float(((without - without.mean()).square().sum() * 299 / 300).sqrt())
    assert error["wrong"]["se"] == pytest.approx(jackknife, rel=0.1)
    assert "mean_of_observed" in found.summary["error"] and "independent_pixels" in found.summary
    none = dataclasses.replace(run.data.test, missing=torch.zeros_like(run.data.test.missing))  # type: ignore[arg-type]
    object.__setattr__(run.data, "test", none)
    with pytest.raises(BadInput, match="the first 9 images of the test split miss no pixel; take more"):
        run.fill(num_images=9, quiet=True)

    missing[:, 3, 3] = True
    never = ppl_gen.Run.fit("vae", data=images, missing=missing, out="never", **few)
    summary = never.fill(num_images=300, quiet=True).summary
    assert set(summary["error"]) == {"model"} and "independent_pixels" not in summary


def test_levels(elsewhere: Path) -> None:
    """Independent pixels have the frequencies of their levels. Levels are not binary: there are no wrong ones."""
    generator = np.random.default_rng(1)
    chances = generator.dirichlet(np.ones(4), size=6)
    x = np.stack([generator.choice(4, size=400, p=each) for each in chances], 1).reshape(-1, 2, 3).astype(np.uint8)
    few: dict[str, Any] = {"epochs": 1, "latent_dim": 2, "hidden_dims": (8,), "num_samples": 30, "quiet": True}
    for missing in (None, 0.25):
        run = ppl_gen.Run.fit("vae", data=x, likelihood="categorical", binarization="none", missing=missing, **few)
        found = run.fill(hide="left", num_images=40, quiet=True)
        level = (found.x * 3).round().long()
        train = (run.data.targets("train") * 3).round()
        counts = torch.stack([(train == each).sum(0) for each in range(4)]).double() + 0.25
        log_frequency = (counts / counts.sum(0)).log().gather(0, level)
        expected = torch.where(found.visible, 0.0, log_frequency).sum(1).mean()
        assert found.summary["independent_pixels"]["mean"] == pytest.approx(float(expected))
        assert all("wrong" not in entry for entry in found.summary["error"].values())


def test_images_without_a_height(elsewhere: Path, call: Call) -> None:
    np.save("images.npy", np.random.default_rng(0).random((200, 12)) < 0.3)
    small = ("--data", "images.npy", "--epochs", "1", "--num-samples", "5")
    assert call(fit.command, "vae", *small, "--out", "own")[0] == 0
    assert call(fill.command, "own", "--num-images", "3", "--num-samples", "10")[0] == 0
    status, _, err = call(fill.command, "own", "--hide", "top")
    assert status == 2 and "has no height" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *REFUSED,
        (("vae", "--num-images", "0"), ["--num-images 0"]),
        (("vae", "--num-images", "301"), ["--num-images 301", "300"]),
        (("vae", "--hide", "rihgt"), ["--hide rihgt", "did you mean 'right'"]),
        (("vae", "--hide", "nowhere.npy"), ["nowhere.npy", "no such file"]),
        (("vae", "--hide", "cut.npy"), ["cut.npy", "truncated"]),
        (("vae", "--hide", "wide.npy"), ["wide.npy", "(8, 9)", "(8, 8)"]),
        (("vae", "--hide", "grey.npy"), ["grey.npy", "true or 1"]),
        (("vae", "--hide", "words.npy"), ["words.npy", "true or 1"]),
        (("vae", "--hide", "all.npy"), ["all.npy", "every pixel"]),
        (("vae", "--hide", "none.npy"), ["none.npy", "no pixel"]),
    ],
)
def test_bad_input(three_runs: Path, call: Call, arguments: tuple[str, ...], words: list[str]) -> None:
    Path("cut.npy").write_bytes(b"\x93NUMPY\x01")
    for name, array in (
        ("wide", np.ones((8, 9))),
        ("grey", np.full((8, 8), 0.5)),
        ("words", np.full((8, 8), "a")),
        ("all", np.ones((8, 8))),
        ("none", np.zeros((8, 8))),
    ):
        np.save(f"{name}.npy", array)
    refused(call, fill.command, *arguments, words=words)
