"""`fill`: what is typed, what is written, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from commands import REFUSED, Call, read, refused

from ppl_gen import fill, fit
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
    bits = found["log_p_hidden"]["mean"] / -np.log(2) / found["hidden_pixels"]
    assert found["log_p_hidden"]["bits_per_hidden_pixel"] == pytest.approx(bits)
    assert found["independent_pixels"]["mean"] < 0
    assert Path(f"{name}/figures/fill.png").is_file()
    assert "Hidden pixels" in Path(f"{name}/report.html").read_text(encoding="utf-8")


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
