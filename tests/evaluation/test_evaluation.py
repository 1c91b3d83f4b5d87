"""An evaluation in memory and on disk: the same figures, values per image and words."""

import doctest
import html
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from estimates import ABOUT, ONE, annealed, bidirectional, importance, sampled
from fits import CONFIG

from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation import evaluation as module
from ppl_gen.evaluation import reading
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.experiment import run_directory as runs
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.inference.estimate import exact
from ppl_gen.inference.proposals import SecondOpinion

LABELS = torch.arange(20) % 3


def _uneven() -> Evaluation:
    """Everything that an evaluation can hold, with values that differ from image to image."""
    steps = torch.linspace(-1, 1, 20, dtype=torch.float64)
    guided = importance(-10, -12)
    values = {"log_px": guided.log_px + steps, "elbo": guided.elbo + steps, "kl": 2 + steps}
    bounds = {1: guided.elbo + steps, 10: guided.elbo + steps + 1, 100: guided.elbo + steps + 1.5}
    opinion = SecondOpinion(
        num_samples=50, from_prior=ONE, log_px=-11 * ONE, log_px_mc_var=1e-4 * ONE, log_px_bias=0 * ONE
    )
    guided = replace(
        guided,
        **values,
        iwae=bounds,
        iwae_jackknife={k: bounds[k] for k in (10, 100)},
        largest=0.1 * ONE,
        second_opinion=opinion,
    )
    chains = annealed(-10, bidirectional=bidirectional())
    chains = replace(chains, log_px=chains.log_px + steps)
    proposal = {"prior_share": 0.5, "temperature": 1.0, "guides": ["own"]}
    mixed = sampled(-10.0, estimator="importance", words="several", settings={"proposal": proposal})
    mixed = replace(mixed, log_px=-10 + steps)
    found = {"exact": exact(-10 + steps), "importance": guided, "mixed": mixed, "annealed": chains}
    return Evaluation.of(found, "annealed", ABOUT | {"options": {"seed": 0, "proposals": []}}, LABELS)


def _directory(path: Path) -> RunDirectory:
    return RunDirectory.create(path, "vae", CONFIG)


def test_figures_are_those_of_the_estimates() -> None:
    evaluation = _uneven()
    assert evaluation.primary == "annealed" and evaluation.log_px.estimator == "annealed"
    assert evaluation.log_px.settings["num_chains"] == 16
    assert evaluation.log_px.mean == pytest.approx(-10) and evaluation["log_px_exact"].mean == pytest.approx(-10)
    assert evaluation.elbo.mean == pytest.approx(-12) and evaluation["kl"].mean == pytest.approx(2)
    gap = evaluation.gap
    assert gap is not None and gap.mean == pytest.approx(2) and not gap.at_least
    assert gap.values is not None and gap.values == pytest.approx(np.full(20, 2.0))
    spread = float(torch.linspace(-1, 1, 20, dtype=torch.float64).std()) / math.sqrt(20)
    assert evaluation.elbo.se == pytest.approx(spread) and str(evaluation.elbo) == f"-12.00 ± {spread:.2f}"
    assert [evaluation.iwae[k].mean for k in (1, 10, 100)] == pytest.approx([-12, -11, -10.5])
    assert evaluation.iwae[10].values is not None and evaluation.iwae[10].values.shape == (20,)
    assert evaluation["second_opinion"].values is not None and evaluation.bidirectional is not None
    assert evaluation.options == {"seed": 0, "proposals": []}
    assert repr(evaluation).splitlines()[2].startswith("gap       2.00")


def test_to_json_and_back() -> None:
    evaluation = _uneven()
    text = runs.to_json(evaluation.to_json())
    again = Evaluation(json.loads(text), evaluation.to_xarray())
    assert runs.to_json(again.to_json()) == text
    assert str(again) == str(evaluation) and again._repr_html_() == evaluation._repr_html_()


def test_to_disk_and_back(tmp_path: Path) -> None:
    evaluation, run = _uneven(), _directory(tmp_path / "run")
    assert Evaluation.read(run) is None
    evaluation.write(run)
    theirs = evaluation.to_xarray()
    for kept in (True, False):  # what was written last is not read again, and is what would be read
        if not kept:
            module._LAST.clear()
        again = Evaluation.read(run)
        assert again is not None and str(again) == str(evaluation)
        ours = again.to_xarray()
        assert ours is not theirs and not np.shares_memory(ours["elbo"].values, theirs["elbo"].values)
        xarray.testing.assert_identical(ours, theirs)
        assert {name: each.dtype for name, each in ours.variables.items()} == {
            name: each.dtype for name, each in theirs.variables.items()
        }
    (run.path / "evaluation.nc").unlink()
    without = Evaluation.read(run)
    assert without is not None and str(without) == str(evaluation) and without.elbo.values is None
    for values in (without.to_xarray, without.to_dataframe, lambda: without.estimates):
        with pytest.raises(BadInput, match="no values per image"):
            values()


def test_doubts_are_kept_on_disk(tmp_path: Path) -> None:
    """An image is not trusted, whatever its k-hat, if the guide misses a value there; and read again neither."""
    run, doubted = _directory(tmp_path / "run"), torch.arange(20) % 4 == 1
    found = {"importance": replace(importance(-10, -12), doubted=doubted)}
    Evaluation.of(found, "importance", ABOUT).write(run)
    module._LAST.clear()
    read = Evaluation.read(run)
    assert read is not None and torch.equal(read.estimates["importance"].untrusted, doubted)
    assert (read.to_xarray()["untrusted"].values == doubted.numpy()).all()
    Evaluation.of({"importance": importance(-10, -12)}, "importance", ABOUT).write(run)
    read = Evaluation.read(run)
    assert read is not None and "doubted" not in read.to_xarray()


def test_many_images_are_written_in_blocks(tmp_path: Path) -> None:
    """Blocks hold what one file holds, a comparison reads the same numbers, and files of an earlier evaluation go."""
    evaluation, whole, run = _uneven(), _directory(tmp_path / "whole"), _directory(tmp_path / "run")
    for directory in (whole, run):
        evaluation.write(directory)
    evaluation.write(run, most=6)
    first = sorted(run.path.glob("evaluation-*.nc"))
    evaluation.write(run, most=8)
    files = sorted(run.path.glob("evaluation*.nc"))
    assert len(first) == 4 and len(files) == 3
    parts = [xarray.load_dataset(file, group=runs.GROUP, engine="h5netcdf") for file in files]
    xarray.testing.assert_identical(xarray.concat(parts, "image", data_vars="minimal"), evaluation.to_xarray())
    (run.path / "evaluation.nc").write_bytes(b"as a process leaves it that is killed before it removes the file")
    again = Evaluation.read(run)
    assert again is not None and str(again) == str(evaluation)
    with pytest.raises(BadInput, match="lie in blocks"):
        again.to_xarray()
    ours, theirs = reading.read(run.path), reading.read(whole.path)
    np.testing.assert_array_equal(ours.elbo, theirs.elbo)
    np.testing.assert_array_equal(ours.log_px, theirs.log_px)
    assert ours.iwae.keys() == theirs.iwae.keys() and ours.estimates.keys() == theirs.estimates.keys()
    assert all((ours.iwae[k] == theirs.iwae[k]).all() for k in ours.iwae)
    evaluation.write(run)
    assert sorted(file.name for file in run.path.glob("evaluation*")) == ["evaluation.json", "evaluation.nc"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda files: files[1].unlink(), "is missing"),
        (lambda files: files[1].write_bytes(files[0].read_bytes()), "another mean elbo"),
        (lambda files: files[2].write_bytes(files[0].read_bytes()), "another num_images"),
        (lambda files: files[1].write_bytes(files[1].read_bytes()[:99]), "damaged"),
    ],
)
def test_bad_blocks_are_refused(tmp_path: Path, spoil: Callable[[list[Path]], object], words: str) -> None:
    run = _directory(tmp_path / "run")
    _uneven().write(run, most=8)
    spoil(sorted(run.path.glob("evaluation-*.nc")))
    with pytest.raises(BadInput, match=words):
        reading.read(run.path)


@pytest.mark.parametrize("name", ["../x.nc", "evaluation.nc", 3])
def test_blocks_lie_in_the_run(tmp_path: Path, name: object) -> None:
    run = _directory(tmp_path / "run")
    _uneven().write(run, most=8)
    content = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
    (run.path / "evaluation.json").write_text(json.dumps(content | {"blocks": [name]}))
    with pytest.raises(BadInput, match=r"damaged|missing"):
        reading.read(run.path)


def test_a_full_disk_leaves_the_earlier_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is read is replaced before all blocks are there."""
    run = _directory(tmp_path / "run")
    _uneven().write(run, most=8)
    before = {file: file.read_bytes() for file in run.path.glob("evaluation*")}
    write, calls = runs.write_files, itertools.count()

    def full(contents: Any) -> None:
        if next(calls) == 2:
            raise BadInput("No space left on device")
        write(contents)

    monkeypatch.setattr(runs, "write_files", full)
    with pytest.raises(BadInput, match="No space"):
        _uneven().write(run, most=3)
    assert {file: file.read_bytes() for file in before} == before
    assert reading.read(run.path).images.num_images == 20


def test_estimates_are_read_as_they_were_written(tmp_path: Path) -> None:
    """All of them, in float64, with the verdict that was recorded; what was not written is None."""
    run = _directory(tmp_path / "run")
    _uneven().write(run)
    module._LAST.clear()
    again = Evaluation.read(run)
    assert again is not None
    found = again.estimates
    assert list(found) == ["annealed", "exact", "importance", "mixed"]
    steps = torch.linspace(-1, 1, 20, dtype=torch.float64)
    for name, mc_var, khat, samples in (
        ("annealed", 0.04, None, 16),
        ("exact", 0.0, None, None),
        ("importance", 1e-4, 0.1, 1000),
        ("mixed", 1e-4, 0.1, 1000),
    ):
        each = found[name]
        assert torch.equal(each.log_px, -10 + steps) and each.num_samples == samples
        torch.testing.assert_close(each.log_px_mc_var, mc_var * ONE)
        assert (each.khat is None) == (khat is None) and (each.khat is None or bool((each.khat == khat).all()))
        entry = again.summary["log_px" if name == "annealed" else f"log_px_{name}"]
        assert each.at_least == entry["at_least"] and each.mean == entry["mean"]
    assert found["mixed"].words == "several"
    assert found["annealed"].words == "annealed importance sampling" and not found["exact"].sampled
    assert found["mixed"].settings["proposal"]["guides"] == ["own"]
    assert found["importance"].largest is not None and found["mixed"].largest is None


def test_a_data_frame_has_a_row_for_each_image() -> None:
    evaluation = _uneven()
    frame = evaluation.to_dataframe()
    assert frame.columns[0] == "label" and frame["label"].tolist() == LABELS.tolist()
    assert {"elbo", "log_px", "gap", "khat", "iwae_1", "iwae_10", "iwae_100", "log_px_annealed_mc_se"} <= set(frame)
    assert frame.index.name == "image" and len(frame) == 20
    assert frame["iwae_10"].mean() == pytest.approx(-11) and "iwae" not in frame
    alone = Evaluation.of({"exact": exact(-10 * ONE)}, "exact", ABOUT).to_dataframe()
    assert set(alone.columns) == {"elbo", "log_px", "log_px_exact"}


def test_where_the_elbo_is_exact_there_is_no_gap() -> None:
    evaluation = Evaluation.of({"exact": exact(-10 * ONE)}, "exact", ABOUT)
    assert evaluation.gap is None and evaluation.iwae == {}
    assert evaluation.elbo.mean == evaluation.log_px.mean == -10 and evaluation.log_px.mc_se is None


def test_html_has_the_rows_of_the_table() -> None:
    evaluation = _uneven()
    page = evaluation._repr_html_()
    cells = [html.unescape(re.sub("<[^>]+>", "\n", line)).split("\n") for line in page.split("<tr>")[2:]]
    written = [[cell for cell in line if cell] for line in cells]
    for row, line in zip(evaluation.rows(), written, strict=True):
        shown = [f"{'at least ' if row.at_least else ''}{row.mean}"] if row.mean else []
        assert line == [text for text in (row.label.strip(), *shown, f"± {row.se}" if row.se else "", row.note) if text]
    assert "vae, guide normal: 20 test images of digits" in page


def test_html_is_escaped() -> None:
    """A data set may be named anything, and so may a guide."""
    evaluation = Evaluation(_uneven().summary | {"guide": "<script>alert(1)</script>", "data": "a&b"})
    page = evaluation._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "a&amp;b" in page


@pytest.mark.parametrize("observation", ["density", "cross-entropy"])
def test_what_must_not_be_overlooked_is_said(observation: str) -> None:
    evaluation = Evaluation(_uneven().summary | {"observation": observation})
    warning = {"density": "densities of grey pixels", "cross-entropy": "do not bound the log-probability"}[observation]
    assert warning in str(evaluation) and warning in evaluation._repr_html_()


def test_the_example_is_what_it_prints() -> None:
    assert doctest.testmod(module) == (0, 5)


def _spoil(run: RunDirectory, part: str, key: str) -> None:
    summary: Any = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
    if part == "json":
        other = {"elbo": {"mean": -1.0, "se": 1.0}, "num_images": 19, "seed": 1}
        other["log_px"] = summary["log_px"] | {"estimator": "prior"}
        other["log_px_importance"] = summary["log_px_importance"] | {"num_samples": 5}
        summary[key] = other[key]
        run.write_json("evaluation.json", summary)
    else:
        (run.path / "evaluation.nc").write_bytes(b"no such format")


@pytest.mark.parametrize(
    ("part", "key", "words"),
    [
        ("json", "elbo", "has another mean elbo"),
        ("json", "num_images", "has another num_images"),
        ("json", "seed", "has another seed"),
        ("json", "log_px", "has another estimator"),
        ("json", "log_px_importance", "has another num_samples"),
        ("nc", "", "damaged"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, part: str, key: str, words: str) -> None:
    run = _directory(tmp_path / "run")
    _uneven().write(run)
    _spoil(run, part, key)
    with pytest.raises(BadInput, match=f"{words}.*make it again: python -m ppl_gen.evaluate"):
        Evaluation.read(run)


def test_reading_and_printing_one_waits_for_no_torch(tmp_path: Path) -> None:
    run = _directory(tmp_path / "run")
    _uneven().write(run)
    code = (
        "import sys; from pathlib import Path; from ppl_gen.experiment.run_directory import RunDirectory\n"
        "from ppl_gen.evaluation.evaluation import Evaluation\n"
        f"evaluation = Evaluation.read(RunDirectory.open(Path({str(run.path)!r})))\n"
        "print(evaluation, evaluation._repr_html_(), evaluation.to_dataframe())\n"
        "assert 'torch' not in sys.modules and 'pyro' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
