"""Files of log weights as rows of a comparison, against numbers worked out by hand; and files that are refused."""

import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from written import compared, write

import ppl_gen
from ppl_gen import compare
from ppl_gen.comparison import Comparison
from ppl_gen.core.errors import BadInput

Call = Callable[..., tuple[int, str, str]]
SHA = "0123456789abcdef" * 4
ELBO, LOG_PX = [-11.0, -14.0, -16.0, -13.0], [-10.0, -13.0, -15.0, -12.0]
OURS = {"log_px": [-10.5, -13.0, -16.0, -13.5], "elbo": [-11.0, -13.5, -16.5, -14.0]}


def save(file: str, log_px: list[float], /, *, elbo_below: float = 0.5, **more: Any) -> Path:
    """A file of weights whose log p(x) of each image is given, and whose ELBO is half a nat below it: two weights a
    and b with log((a + b) / 2) = log p(x) and (log a + log b) / 2 = log p(x) - 1/2."""
    t = math.acosh(math.exp(elbo_below))  # log cosh t
    deviations = np.tile([[t], [-t]], (50, 1)) - elbo_below
    np.savez_compressed(file, log_weights=np.array(log_px) + deviations, **{"observation": "probability"} | more)
    return Path(file)


@pytest.fixture
def run(elsewhere: Path) -> Path:
    return write("run", ELBO, LOG_PX, **{"evaluation.images_sha256": SHA})


def test_paired_with_a_run_of_the_same_images(run: Path) -> None:
    file = save("numpyro.npz", OURS["log_px"], images_sha256=SHA.upper())
    comparison = Comparison([file, run])
    best, ours = comparison.to_json()["rows"]
    assert (best["runs"], ours["runs"]) == (["run"], ["numpyro.npz"])
    assert (ours["model"], ours["guide"], ours["prior"], ours["objective"]) == ("numpyro", None, None, "")
    assert ours["options"] == {} and ours["seeds"] == [0] and ours["num_parameters"] is None
    for name, values in OURS.items():
        assert ours[name]["mean"] == pytest.approx(np.mean(values)), name
        assert ours[name]["se"] == pytest.approx(np.std(values, ddof=1) / 2), name
    assert ours["log_px"]["num_samples"] == 100 and ours["gap"]["mean"] == pytest.approx(0.5)
    assert ours["iwae"]["k"] == 10
    # Image by image 0.5, 0, 1 and 1.5 below: mean 0.75.
    difference, spread = ours["log_px_difference"], np.std([0.5, 0, 1, 1.5], ddof=1) / 2
    half = stats.t.isf(0.025, 3) * spread
    assert (
        difference["paired"] is True and difference["of"] == "weights" and best["log_px_difference"]["paired"] is None
    )
    expected = [-0.75, spread, -0.75 - half, -0.75 + half]
    assert [difference[key] for key in ("mean", "se", "low", "high")] == pytest.approx(expected)
    assert ours["elbo_difference"]["mean"] == pytest.approx(-13.75 + 13.5)
    assert "unpaired" not in str(comparison) and "4 test images of digits" in str(comparison)
    assert comparison.images.data == "digits" and comparison.frame.loc[1, "log_px_difference_paired"]


def test_unpaired_without_the_images(run: Path) -> None:
    """The errors of two independent sets of images, which may differ in number."""
    file = save("other.npz", [-20.0, -22.0, -21.0], name="Stan, mean field")
    for order in ([run, file], [file, run]):
        comparison = Comparison(order)
        difference = comparison.to_json()["rows"][1]["log_px_difference"]
        variances = np.var(LOG_PX, ddof=1) / 4, np.var([-20, -22, -21], ddof=1) / 3
        half = math.sqrt(sum(stats.t.isf(0.025, d) ** 2 * v for d, v in zip((3, 2), variances, strict=True)))
        expected = [-21 + 12.5, math.sqrt(sum(variances)), -8.5 - half, -8.5 + half]
        assert difference["paired"] is False
        assert [difference[key] for key in ("mean", "se", "low", "high")] == pytest.approx(expected)
        lines = str(comparison).splitlines()
        assert lines[0].startswith("4 test images of digits") and lines[4].count("unpaired") == 2
        assert lines[3].count("unpaired") == 0 and "Stan, mean field" in lines[4]
        assert "  no images_sha256: other.npz (3 images)" in lines
        assert any("nothing says that this row and the first are of the same images" in line for line in lines)


def test_files_alone(elsewhere: Path) -> None:
    """Two of the same images are paired; a third of unknown images is not, and is no second seed of one of its name."""
    first, second = save("a.npz", LOG_PX, images_sha256=SHA), save("b.npz", OURS["log_px"], images_sha256=SHA)
    third = save("c.npz", [-20.0, -21.0], name="b")
    comparison = Comparison([first, second, third])
    assert [row.log_px_difference.paired for row in comparison.rows] == [None, True, False]
    assert str(comparison).startswith("4 images; nats per image, larger is better\n")
    assert comparison.images._asdict() | {"data": None, "split": None} == comparison.images._asdict()
    assert [row.runs for row in comparison.rows] == [["a.npz"], ["b.npz"], ["c.npz"]]
    assert [row.options for row in comparison.rows] == [{}, {"images_sha256": SHA[:8]}, {"file": "c.npz"}]
    alone = Comparison(third)
    assert "Δ" not in str(alone) and "log p(x)" in str(alone)
    for text in (comparison.to_csv(), comparison.to_markdown(), comparison._repr_html_()):
        assert "c.npz" in text


def test_seeds_share_a_row(run: Path) -> None:
    files = [
        save(f"s{seed}.npz", [v - seed for v in LOG_PX], name="mine", seed=seed, images_sha256=SHA) for seed in (0, 1)
    ]
    _, row = compared(run, *files)["rows"]
    assert row["seeds"] == [0, 1] and row["runs"] == ["s0.npz", "s1.npz"]
    assert row["log_px"]["mean"] == pytest.approx(np.mean(LOG_PX) - 0.5)
    assert row["log_px"]["se_seeds"] == pytest.approx(0.5)


def test_a_runs_options_are_not_told_apart_from_a_file(run: Path) -> None:
    """A run among files has the columns that it has alone, and its missing options are not the file's."""
    save("w.npz", OURS["log_px"], name="vae", images_sha256=SHA)
    other = write("flow", [-12.0] * 4, [-12.0] * 4, prior="flow", **{"evaluation.images_sha256": SHA})
    with_file = [row for row in compared(run, other, Path("w.npz"))["rows"] if row["runs"] != ["w.npz"]]
    alone = compared(run, other)["rows"]
    names = ("model", "guide", "prior", "objective", "options", "elbo", "log_px", "gap")
    assert [[row[name] for name in names] for row in with_file] == [[row[name] for name in names] for row in alone]


def test_weights_of_a_fitted_run(elsewhere: Path, fitted: Path) -> None:
    """The weights of a run's own pair on its own test images, saved as another package would: a row beside it that
    differs by the samples alone."""
    run = ppl_gen.Run.open(fitted)
    x = run.data.targets("test")
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        weights = ppl_gen.log_weights(run.model, run.guide, x, num_samples=30)
    sha = ppl_gen.images_sha256(x)
    assert run.evaluation is not None and sha == run.evaluation.summary["images_sha256"]
    assert sha == ppl_gen.images_sha256(x.reshape(len(x), 8, 8).numpy().astype(np.uint8))
    np.savez("again.npz", log_weights=weights.numpy(), images_sha256=sha, observation="probability")
    found = Comparison([fitted, "again.npz"])
    ours, theirs = ppl_gen.judge(weights), run.evaluation
    errors = (float(ours.elbo_mc_var.sum().sqrt()) / len(x), theirs["elbo"].mc_se or 0)
    assert abs(float(ours.elbo.mean()) - theirs.elbo.mean) < 4 * math.hypot(*errors)
    theirs = theirs["log_px_importance"]
    assert abs(ours.mean - theirs.mean) < 4 * math.hypot(ours.mc_se, theirs.mc_se or 0)
    difference = found.rows[1].log_px_difference
    assert difference.paired and (difference.se or 1) < 0.3 * ours.se  # what is hard for one is hard for the other


def test_on_the_command_line(run: Path, call: Call) -> None:
    save("w.npz", OURS["log_px"], images_sha256=SHA)
    status, out, err = call(compare.command, "run", "w.npz", "--format", "json")
    assert status == 0 and err == "" and json.loads(out) == Comparison(["run", "w.npz"]).to_json()
    with pytest.raises(BadInput, match="posteriors"):
        Comparison(["run", "w.npz"]).posteriors()


@pytest.mark.drawn
def test_a_row_of_infinite_bounds(run: Path) -> None:
    weights = np.full((100, 4), -12.0)
    weights[::2] = -np.inf
    np.savez("half.npz", log_weights=weights, images_sha256=SHA, observation="probability")
    found = Comparison([run, "half.npz"])
    ours = next(row for row in found.rows if row.model == "half")
    assert ours.elbo.mean == -math.inf and ours.log_px.mean == pytest.approx(-12 - math.log(2))
    assert "-inf" in str(found) and len(found.figure().axes) == 1
    json.loads(json.dumps(found.to_json()))


# What is refused -----------------------------------------------------------------------------------------------


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def _claiming(shape: tuple[int, ...]) -> bytes:
    """A header that claims a shape, and nothing behind it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _zip(file: str, /, **members: bytes) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for member, content in members.items():
            archive.writestr(f"{member}.npy", content)


WEIGHTS = _npy(np.zeros((5, 4)))
MEMBERS: list[tuple[dict[str, bytes], str]] = [
    ({}, "has no array called log_weights; its arrays: none"),
    ({"w": WEIGHTS}, "has no array called log_weights; its arrays: w"),
    ({"log_weights": b"nonsense"}, "truncated, or not an .npz file of log weights ("),
    ({"log_weights": WEIGHTS[:-8]}, "truncated, or not an .npz file of log weights ("),
    ({"log_weights": _claiming((10**7, 10**7))}, "log_weights [10000000, 10000000] needs 745,058.1 GiB of memory, but"),
    ({"log_weights": _claiming((-1, 3))}, "truncated, or not an .npz file of log weights (the shape (-1, 3) is neg"),
    ({"log_weights": _npy(np.array([[1, None]]))}, "log_weights: must be numbers in float32 or float64, not object"),
    ({"log_weights": _npy(np.zeros((5, 4), int))}, "log_weights: must be numbers in float32 or float64, not int64"),
    ({"log_weights": _npy(np.full((5, 4), np.nan))}, "log_weights: is NaN for image 0, sample 0"),
    ({"log_weights": WEIGHTS, "name": _npy(np.array("a\nb"))}, "name 'a\\nb' must be a word or some words, in one"),
    ({"log_weights": WEIGHTS, "name": _npy(np.array("x" * 201))}, "name must be one text of at most 200 characters"),
    ({"log_weights": WEIGHTS, "name": _npy(np.array(3))}, "name must be one text of at most 200 characters"),
    ({"log_weights": WEIGHTS, "name": _npy(np.array({1}))}, "name must be one text of at most 200 characters"),
    ({"log_weights": WEIGHTS, "images_sha256": _npy(np.array("ab"))}, "images_sha256 'ab' must have 64 hexadecimal"),
    ({"log_weights": WEIGHTS, "observation": _npy(np.array("grey"))}, "observation 'grey': choose from probability,"),
    ({"log_weights": WEIGHTS, "seed": _npy(np.array(-1))}, "seed must be a whole number, at least 0 and below 2^63"),
    ({"log_weights": WEIGHTS, "seed": _npy(np.array(0.5))}, "seed must be a whole number, at least 0 and below 2^63"),
]


@pytest.mark.parametrize(("members", "message"), MEMBERS)
def test_files_that_are_refused(elsewhere: Path, call: Call, members: dict[str, bytes], message: str) -> None:
    _zip("w.npz", **members)
    status, out, err = call(compare.command, "w.npz")
    assert (status, out) == (2, "") and err.startswith(f"error: w.npz: {message}") and err.count("\n") == 1, err


def test_what_is_no_file(elsewhere: Path, call: Call) -> None:
    Path("text.npz").write_text("no zip")
    Path("folder.npz").mkdir()
    for path, message in (
        ("none.npz", "none.npz: no such file of log weights"),
        ("text.npz", "text.npz: truncated, or not an .npz file of log weights (File is not a zip file)"),
        ("folder.npz", "folder.npz: not a run directory: it has no config.json"),
    ):
        assert call(compare.command, path) == (2, "", f"error: {message}\n")


def test_what_cannot_be_compared(run: Path) -> None:
    same = {"images_sha256": SHA}
    for name, other, message in (
        (
            "a.npz",
            {"images_sha256": "f" * 64},
            "the images' SHA-256 is 01234567 in the first and ffffffff in the second",
        ),
        ("b.npz", same | {"observation": "density"}, "observation is probability in the first and density in the sec"),
        (
            "c.npz",
            {"observation": "unstated"},
            "c.npz: does not say of what kind its p(x) is, and the others are of pr",
        ),
    ):
        save(name, LOG_PX, **other)
        with pytest.raises(BadInput, match=message.replace("(", r"\(").replace(")", r"\)")):
            Comparison([run, name])
    save("short.npz", LOG_PX[:2], **same)
    with pytest.raises(BadInput, match="num_images is 4 in the first and 2 in the second"):
        Comparison([run, "short.npz"])
    save("d.npz", LOG_PX, **same)
    with pytest.raises(BadInput, match="have the same name and seed, 0; leave one out, or give it a name or a seed of"):
        Comparison(["d.npz", "d.npz"])
    # The two files contradict each other, and the first of all says nothing.
    save("e.npz", LOG_PX)
    with pytest.raises(BadInput, match=r"a\.npz and d\.npz cannot be compared: the images' SHA-256"):
        Comparison(["e.npz", "a.npz", "d.npz"])


def test_a_run_of_an_earlier_version_is_not_paired(elsewhere: Path) -> None:
    """It did not record the SHA-256 of its images."""
    write("old", ELBO, LOG_PX)
    save("w.npz", OURS["log_px"], images_sha256=SHA)
    comparison = Comparison(["old", "w.npz"])
    assert comparison.rows[1].log_px_difference.paired is False
    assert "no images_sha256: old (4 images)" in comparison.notes


def test_log_probabilities_above_0_are_told(elsewhere: Path) -> None:
    high = save("high.npz", [12.0, 13.0, 11.0, 12.5], images_sha256=SHA)
    sound = save("sound.npz", LOG_PX, images_sha256=SHA)
    assert "high.npz: importance sampling is too high: above 0" in str(Comparison([high, sound]))
    assert "too high: above" not in str(Comparison([sound]))
    density = save("density.npz", [12.0, 13.0, 11.0, 12.5], observation="density")
    assert "too high: above" not in str(Comparison([density]))
