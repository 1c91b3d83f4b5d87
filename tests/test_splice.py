"""`splice`: what is typed, what is written, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from commands import REFUSED, Call, read, refused

from ppl_gen import fit, splice


@pytest.mark.parametrize("name", ["mixture", "belief-net", "vae"])
def test_splice(three_runs: Path, call: Call, name: str) -> None:
    arguments = (name, "--num-images", "20", "--num-samples", "20", "--num-batches", "50")
    status, out, err = call(splice.command, *arguments)
    assert status == 0, err
    assert "ROC AUC" in out and "false alarms" in out
    found = read(f"{name}/splice.json")
    assert (found["num_natural"], found["num_spliced"]) == (40, 20)
    assert found["estimator"] == ("importance" if name == "vae" else "exact")
    assert ("num_samples" in found) == (name == "vae")
    assert 0 <= found["roc_auc"]["mean"] <= 1 and found["roc_auc"]["se"] > 0
    assert list(found["two_sample_test"]["power"]) == ["1", "2", "5", "10", "20"]
    assert Path(f"{name}/figures/spliced.png").stat().st_size and Path(f"{name}/figures/splice_power.png").is_file()
    before = Path(f"{name}/splice.json").read_bytes()
    assert call(splice.command, *arguments)[0] == 0
    assert Path(f"{name}/splice.json").read_bytes() == before  # the same seed


def test_splice_by_importance_agrees_with_exact(three_runs: Path, call: Call) -> None:
    for estimator in ("exact", "importance"):
        arguments = ("mixture", "--num-images", "10", "--num-batches", "2", "--num-samples", "2000")
        assert call(splice.command, *arguments, "--estimator", estimator)[0] == 0
        found = read("mixture/splice.json")
        assert found["estimator"] == estimator
        if estimator == "exact":
            exact = found["log_px"]
    for kind in ("natural", "spliced"):
        assert found["log_px"][kind]["mean"] == pytest.approx(exact[kind]["mean"], abs=0.2)


def test_without_labels(elsewhere: Path, call: Call) -> None:
    np.save("images.npy", np.random.default_rng(0).random((200, 12)) < 0.3)
    small = ("--data", "images.npy", "--epochs", "1", "--num-samples", "5")
    assert call(fit.command, "mixture", *small, "--out", "own")[0] == 0
    status, _, err = call(splice.command, "own")
    assert status == 2 and "has no labels" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *REFUSED,
        (("vae", "--num-images", "9"), ["--num-images 9", "at least 10"]),
        (("vae", "--num-images", "76"), ["--num-images 76", "300"]),
        (("vae", "--num-samples", "0"), ["--num-samples 0"]),
        (("vae", "--num-batches", "0"), ["--num-batches 0"]),
        (("vae", "--false-alarm-rate", "1"), ["--false-alarm-rate 1"]),
        (("vae", "--false-alarm-rate", "nan"), ["--false-alarm-rate nan"]),
        (("vae", "--estimator", "exact"), ["--estimator exact", "no finite support"]),
        (("vae", "--estimator", "guess"), ["guess", "--estimator"]),
        (("vae", "--guide", "own.py:Guide"), ["own.py:Guide", "was fitted with normal"]),
    ],
)
def test_bad_input(three_runs: Path, call: Call, arguments: tuple[str, ...], words: list[str]) -> None:
    refused(call, splice.command, *arguments, words=words)
