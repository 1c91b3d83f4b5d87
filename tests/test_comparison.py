"""`Comparison` against numbers worked out by hand, on runs written by hand and on one that was fitted."""

import csv
import html
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import FEW
from torch import Tensor, nn
from written import compared, write

import ppl_gen
from ppl_gen import compare
from ppl_gen.comparison import Comparison
from ppl_gen.core.errors import BadInput
from ppl_gen.core.options import flat
from ppl_gen.evaluation.columns import layout
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]


def test_of_a_fitted_run(elsewhere: Path, fitted: Path, call: Call) -> None:
    """The numbers are those of its evaluation.json, and a figure replaces another."""
    summary = json.loads((fitted / "evaluation.json").read_text(encoding="utf-8"))
    (row,) = compared(fitted)["rows"]
    for key in ("elbo", "log_px"):
        assert row[key]["mean"] == pytest.approx(summary[key]["mean"]) and row[key]["se"] == pytest.approx(
            summary[key]["se"]
        )
    assert row["iwae"]["mean"] == pytest.approx(summary["iwae"]["10"]["mean"])
    assert row["gap"] == {key: summary["gap"][key] for key in ("mean", "at_least")}
    assert row["epochs"] == 1 and row["seconds"] > 0
    Path("f.png").write_text("old")
    status, out, err = call(compare.command, fitted, "--figure", "f.png")
    assert status == 0 and err == "" and "300 test images of digits" in out
    assert Path("f.png").read_bytes()[:4] == b"\x89PNG" and [path.name for path in elsewhere.iterdir()] == ["f.png"]


@dataclass
class Opened:
    """A run as a user holds it."""

    directory: Run


def several() -> list[Path]:
    """Two rows, the first of two seeds; the second was annealed, and has another option and no interval over seeds."""
    annealed = {"evaluation.log_px.estimator": "annealed", "evaluation.log_px.num_temperatures": 9}
    return [
        write("a0", [-2, -1, -3], [-1, -1, -2], **{"model_options.latent_dim": 3}),
        write("a1", [-2, -2, -3], [-2, -1, -2], **{"model_options.latent_dim": 3, "training.seed": 1}),
        write("b", [-5, -4, -4], [-5, -2, -4], prior="flow", **annealed),
    ]


def test_runs_are_paths_and_what_has_a_directory(elsewhere: Path) -> None:
    first, second, third = several()
    mixed = Comparison(iter([str(first), second, Opened(RunDirectory.open(third))]))
    assert mixed.runs == (first, second, third)
    assert mixed.to_json() == compared(first, second, third)
    assert "Comparison" in ppl_gen.__all__ and ppl_gen.Comparison is Comparison


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], "name at least one run"),
        ([3], "3 is not a run"),
        (["a0", None], "None is not a run"),
        (["nowhere"], "nowhere: no such run directory"),
    ],
)
def test_what_is_no_run(elsewhere: Path, runs: Any, words: str) -> None:
    several()
    with pytest.raises(BadInput, match=re.escape(words)):
        Comparison(runs)


@pytest.mark.drawn
def test_one_run(elsewhere: Path) -> None:
    comparison = Comparison(["a0"] if several() else [])
    (row,) = comparison.rows
    assert row.log_px_difference.mean is None and row.difference_of is None and "Δ" not in str(comparison)
    assert comparison.frame.loc[0, "log_px"] == pytest.approx(-4 / 3)
    assert comparison.frame[["log_px_se_seeds", "log_px_difference", "prior"]].isna().all(axis=None)
    assert comparison.images == ("digits", "test", 3, "static", "probability", 0.0, "log p(x)")
    assert len(comparison.distances.rows) == 1 and len(comparison.figure().axes) == 1
    assert repr(comparison) == str(comparison)


def test_the_frame_has_the_numbers_of_the_json(elsewhere: Path) -> None:
    comparison = Comparison(several())
    frame, rows = comparison.frame, comparison.to_json()["rows"]
    assert list(frame.index) == [0, 1] and list(frame["guide"]) == ["normal", "normal"]
    expected = {name: [each.get(name) for each in map(flat, rows)] for row in map(flat, rows) for name in row}
    assert len(expected) == len(frame.columns) - 1
    for name, values in expected.items():
        column = frame[name.removesuffix(".mean").replace(".", "_")]
        assert [None if isinstance(value, float) and math.isnan(value) else value for value in column] == values, name
    assert list(frame["num_seeds"]) == [2, 1] and list(frame["options_latent_dim"]) == [3, 2]
    numbers = [
        "elbo",
        "iwae_k",
        "log_px_se",
        "log_px_difference_low",
        "gap",
        "amortization",
        "num_parameters",
        "epochs",
    ]
    assert all(frame[name].dtype.kind in "if" for name in numbers) and frame["log_px_at_least"].dtype == bool
    assert frame.loc[1, "log_px_difference"] == pytest.approx(-11 / 3 + 9 / 6)
    assert (
        list(frame["log_px_difference_of"].isna()) == [True, False] and frame.loc[1, "elbo_difference_of"] == "weights"
    )
    assert frame.loc[1, "log_px_num_temperatures"] == 9 and math.isnan(frame.loc[0, "log_px_num_temperatures"])
    names = list(frame.columns)
    assert names[:4] == ["model", "guide", "prior", "objective"] and names[-1] == "epochs"
    assert names.index("log_px_num_temperatures") < names.index("log_px_difference")


def test_the_csv_has_the_numbers_of_the_json(elsewhere: Path) -> None:
    """Every digit of them."""
    comparison = Comparison(several())
    lines = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    for line, row in zip(lines, comparison.to_json()["rows"], strict=True):
        joined = {key: " ".join(map(str, row[key])) for key in ("seeds", "runs")}
        joined["options"] = " ".join(f"{name}={value}" for name, value in row["options"].items())
        cells = {name: "" if value is None else str(value) for name, value in flat(row | joined).items()}
        assert line == dict.fromkeys(line, "") | cells
    assert not comparison.to_csv().endswith("\n")


def test_a_notebook_shows_table_and_notes(elsewhere: Path) -> None:
    guide = f"<script>{'long' * 20}&.py:Mine"
    write("<script>&", [-4, -3], [-3, -2], guide=guide, **{"training.epochs": 9, "evaluation.data": "<b>"})
    comparison = Comparison(["<script>&", write("plain", [-4, -3], [-4, -2], **{"evaluation.data": "<b>"})])
    page = comparison._repr_html_()
    assert "<script" not in page and "<b>" not in page and "&lt;script&gt;&amp; stopped after 3 of 9 epochs" in page
    shown = html.unescape(page)
    cells = [cell for heading, column in layout(comparison.rows).columns.items() for cell in (heading, *column)]
    for text in (*cells, *comparison.notes, "test images of <b>", "all rows: model vae"):
        assert text in shown
    assert page.count("<tr") == 3 and page.count("<li>") == len(comparison.notes)


def test_a_page_says_how_it_is_made_again(elsewhere: Path) -> None:
    comparison = Comparison([write("a run", [-2, -1], [-2, -1])])
    pages = comparison.page(), comparison.page(["python", "-m", "ppl_gen.compare", "here"])
    first, second = (html.unescape(re.sub("<.*?>", "", page)).splitlines() for page in pages)
    assert "python -m ppl_gen.compare 'a run' --report comparison.html" in first
    assert "python -m ppl_gen.compare here" in second


class Laplace(nn.Module):
    """A guide of one's own."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__()
        self.net = nn.Linear(data_dim, 2 * latent_dim)

    def guide(self, x: torch.Tensor) -> None:
        loc, log_scale = self.net(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Laplace(loc, log_scale.exp()).to_event(1))


def test_fitting_and_comparing(elsewhere: Path) -> None:
    """Every guide and value from every seed; then nothing is run again, and what was interrupted goes on."""
    x = torch.bernoulli(torch.full((120, 12), 0.3), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"epochs": 1, "num_samples": 10, "hidden_dims": (4,), "data": x, "quiet": True}
    chosen: dict[str, Any] = {"guides": [Laplace, "normal"], "vary": {"latent_dim": [1, 5]}, "seeds": 2}
    found = Comparison.fit("vae", **chosen, **options)
    names = [f"vae-{guide}-latent-dim-{dim}-{s}" for guide in ("laplace", "normal") for dim in (1, 5) for s in (0, 1)]
    assert sorted(path.name for path in Path("runs/vae").iterdir()) == sorted(names)
    assert len(found.frame) == 4 and (found.frame["num_seeds"] == 2).all()
    assert set(found.frame["options_latent_dim"]) == {1, 5}
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    again = Comparison.fit("vae", **chosen, **options)
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before
    assert again.to_json() == found.to_json()
    (Path("runs/vae") / names[0] / "evaluation.json").unlink()
    again = Comparison.fit("vae", **chosen, **options)
    assert [row["log_px"] for row in again.to_json()["rows"]] == [row["log_px"] for row in found.to_json()["rows"]]
    with pytest.raises(BadInput, match="was made with other options: epochs is 1, not 2"):
        Comparison.fit("vae", **chosen, **options | {"epochs": 2})
    with pytest.raises(BadInput, match="Laplace is an instance: several runs would share its weights"):
        Comparison.fit("vae", guides=[Laplace(12, 2)], **options)
    with pytest.raises(BadInput, match="two runs would have the name vae-normal-0"):
        Comparison.fit("vae", guides=["normal", "normal"], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"vary": {"latent_dim": [1, 2]}, "latent_dim": 1},
            "latent_dim: is given twice, for all runs and in vary; give it once",
        ),
        ({"seed": 1}, "seed: give the values of this option as seeds=[…]"),
        ({"vary": {"seed": [1, 2]}}, "seed: give the values of this option as seeds=[…]"),
        ({"guide": "flow"}, "guide: give the values of this option as guides=[…]"),
        ({"vary": {"latent_dim": 2}}, "vary latent_dim 2: must be a list of values"),
        ({"vary": {"optimizer": "adam"}}, "vary optimizer 'adam': must be a list of values"),
        ({"vary": {"latent_dim": []}}, "vary latent_dim: needs at least one value"),
        ({"vary": ["latent_dim"]}, "vary ['latent_dim']: must be a dictionary of options by name"),
        ({"vary": {"data": ["digits"]}}, "vary data: runs are compared on the same images; give them once, as data=…"),
        (
            {"vary": {"binarization": ["static", "threshold"]}},
            "vary binarization: runs are compared on the same test images, but this option changes them",
        ),
        (
            {"vary": {"likelihood": ["bernoulli", "normal"]}, "binarization": "none"},
            "vary likelihood: runs are compared by the same kind of p(x), but this changes it: cross-entropy and "
            "density",
        ),
        (
            {"vary": {"device": ["cpu", "auto"]}},
            "vary device: runs that differ only in it are not different methods; give it once, for all runs",
        ),
        ({"seeds": "2"}, "seeds '2': must be a whole number"),
        ({"seeds": 0}, "seeds 0: needs at least one"),
        ({"seeds": [0.5]}, "seeds 0.5: must be a whole number"),
        ({"guides": []}, "guides []: needs at least one"),
        ({"guide_options": [1]}, "guide_options [1]: must be a dictionary of options by name"),
        ({"on_epoch": 3}, "on_epoch=3: must be a function of two arguments, the run and its metrics"),
        ({"out": 3}, "out 3: must be a path"),
        ({"out": "run"}, "out run: is a run directory; name a folder for the runs"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_before_any_run(
    elsewhere: Path, options: dict[str, Any], message: str
) -> None:
    write("run", [-1, -2], [-1, -2])
    grey = torch.rand((60, 12), generator=torch.Generator().manual_seed(0))
    with pytest.raises(BadInput) as error:
        Comparison.fit("vae", data=None if "data" in options.get("vary", {}) else grey, epochs=1, quiet=True, **options)
    assert str(error.value) == message
    assert [path.name for path in elsewhere.iterdir()] == ["run"]


def test_every_run_calls_on_epoch(elsewhere: Path) -> None:
    """Numbers of NumPy are numbers: of seeds, and of an option."""
    x = torch.bernoulli(torch.full((60, 12), 0.3), generator=torch.Generator().manual_seed(0))
    called: list[tuple[str, int]] = []
    Comparison.fit(
        "vae",
        vary={"latent_dim": np.array([1])},
        seeds=np.int64(2),
        on_epoch=lambda run, metrics: called.append((run.path.name, metrics["epoch"])),
        epochs=2,
        num_samples=10,
        hidden_dims=(4,),
        data=x,
        quiet=True,
    )
    assert called == [(f"vae-latent-dim-1-{seed}", epoch) for seed in (0, 1) for epoch in (1, 2)]


def test_what_is_no_run_is_not_compared() -> None:
    for given in (3, None, [3]):
        with pytest.raises(BadInput, match="is not a run; give run directories or Run objects"):
            Comparison(given)  # type: ignore[arg-type]


def test_a_single_run_needs_no_list(elsewhere: Path) -> None:
    path = write("a0", [-20, -20], [-10, -10])
    assert Comparison(path).to_json() == Comparison([path]).to_json() == Comparison(str(path)).to_json()


def test_other_images_are_no_reason_to_take_the_runs_that_are_there(elsewhere: Path, x: Tensor) -> None:
    Comparison.fit("vae", data=x, out="there", **FEW)
    with pytest.raises(BadInput, match="was fitted to other images"):
        Comparison.fit("vae", data=x.flip(1), out="there", **FEW)
    assert len(Comparison.fit("vae", data=x, out="there", **FEW).rows) == 1


def test_weights_of_the_best_epoch_are_named(elsewhere: Path, x: Tensor) -> None:
    run = Run.fit("vae", data=x, out="run", **FEW)
    assert "best epoch" not in str(run.evaluation) + str(Comparison(run))
    Run.open("run", data=x, checkpoint="best").evaluate(quiet=True)
    for text in (str(run.evaluation), run.evaluation._repr_html_(), str(Comparison(run))):  # type: ignore[union-attr]
        assert "weights of the best epoch" in text
