"""Rows of the documentation's tables are those of stored runs, and are made again by name."""

import json
import re
import shutil
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import Call

from benchmarks import learning_curves, pages, reproduce, two_data_sets
from ppl_gen import calibrate, evaluate, fit
from ppl_gen.figures.style import BLUE, GREEN, VERMILION
from ppl_gen.run import Run

PAGE = "# Title\n\n## {}\n\nText.\n\n```bash\n{}\n```\n"


def test_the_commands_of_a_heading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They run until one fails; a heading that is none, or several, is refused."""
    every = reproduce.sections()
    assert every["The default VAE"][0] == "python -m ppl_gen.fit vae --data mnist --out runs/default"
    assert all(
        line.startswith(("python -m ", "torchrun ", reproduce.COPY)) for commands in every.values() for line in commands
    )
    (tmp_path / "results.md").write_text("# Results\n")
    (tmp_path / "results-one.md").write_text(PAGE.format("One", "python -c 1\npython -c 2"))
    (tmp_path / "speed.md").write_text(PAGE.format("Two", "false\ntrue"))
    docs = ["--docs", str(tmp_path)]
    assert reproduce.main(["one", *docs]) == 0 and capsys.readouterr().out.count("$ python -c") == 2
    assert reproduce.main(["two", *docs]) == 1 and "true" not in capsys.readouterr().out
    assert reproduce.main(["two", "--dry-run", *docs]) == 0 and "$ true" in capsys.readouterr().out
    assert reproduce.main(docs) == 0 and capsys.readouterr().out == "Runs, sweeps and scripts:\n\nHeadings:\nOne\nTwo\n"
    for title, count in (("Three", 0), ("", 2)):
        assert reproduce.main([title, *docs]) == 2
        assert f"'{title}' is no run, sweep or script, and begins {count} headings" in capsys.readouterr().err
    (tmp_path / "speed-of-one.md").write_text(PAGE.format("One", "python -c 3"))
    with pytest.raises(ValueError, match="two headings with commands are 'One'"):
        reproduce.sections(tmp_path)


def test_the_commands_of_a_run() -> None:
    """Those of the run that it starts from come first, and evaluations of it last."""
    every = reproduce.recipes()
    assert [reproduce._after(line, "--out") for line in every["burda-2-iwae-50"]] == [
        "burda-2-vae",
        "burda-2-iwae-5",
        "burda-2-iwae-50",
    ]
    assert every["default-5000"] == [
        *every["default"],
        "cp -r runs/default runs/default-5000",
        "python -m ppl_gen.evaluate runs/default-5000 --num-samples 5000",
    ]


def test_a_run_of_a_sweep_is_copied(tmp_path: Path) -> None:
    """After the sweep; and what is asked of the copy."""
    lines = [
        "python -m ppl_gen.sweep vae --guides normal flow --out runs/guides",
        "cp -r runs/guides/vae-normal-0 runs/gaps-normal",
        "python -m ppl_gen.evaluate runs/gaps-normal --gaps",
        "python -m ppl_gen.splice runs/gaps-normal",
    ]
    (tmp_path / "results.md").write_text(PAGE.format("One", "\n".join(lines)))
    assert reproduce.recipes(tmp_path)["gaps-normal"] == lines


@pytest.mark.usefixtures("elsewhere")
def test_a_run_is_made_and_stored(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run and what starts from it; what stopped goes on; what is stored are the run's own numbers."""
    modules = {f"ppl_gen.{module.__name__.rpartition('.')[2]}": module.command for module in (calibrate, evaluate, fit)}

    def here(words: list[str]) -> SimpleNamespace:
        if words[0] == "cp":
            shutil.copytree(*words[2:])
            return SimpleNamespace(returncode=0)
        status, out, err = call(modules[words[2]], *words[3:])
        print(out, err)
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=here))
    small = "--data digits --train-size 60 --epochs {} --num-samples 30 --hidden-dims 4 --latent-dim 5 --out runs/{}"
    fits = [
        f"python -m ppl_gen.fit vae {small.format(1, 'first')}",
        f"python -m ppl_gen.fit vae --init-from runs/first {small.format(2, 'second')}",
        "python -m ppl_gen.evaluate runs/second --num-samples 40 --sandwich 10",
        "python -m ppl_gen.calibrate runs/second --num-images 50",
    ]
    Path("results.md").write_text(PAGE.format("Both", "\n".join(fits)))
    options = ["second", "--docs", ".", "--results", "stored"]
    assert reproduce.main(options) == 0
    found, summary = reproduce.stored("second", Path("stored")), Run.open("runs/second").evaluation
    assert summary is not None and found["evaluation"] == summary.summary and found["commands"] == fits
    assert found["config"]["init_from"] == "runs/first" and "command" not in found["config"]
    assert found["last_epoch"]["epoch"] == 2
    log_px = summary.summary["log_px"]
    cell = f"{log_px['mean']:.2f} ± {log_px['se']:.2f}"
    assert f"\nlog p(x): {'at least ' * log_px['at_least']}{cell}\n" in capsys.readouterr().out
    calibration = json.loads(Path("runs/second/calibration.json").read_text())
    assert found["calibration"] == calibration
    cells, width = reproduce._cells(reproduce.CELLS, found), summary.summary["sandwich_importance"]["width"]
    assert cells["calibration of the guide"] == " → ".join(calibration[e]["verdict"] for e in ("before", "after"))
    assert cells["distance of the two bounds"] == f"{width['mean']:.3f} ± {width['se']:.3f}"
    assert cells["importance sampling"] == cells["log p(x)"]
    assert not {"exact, or by quadrature", "settled log p(x)", "settled images"} & set(cells)
    log_px["at_least"] = not log_px["at_least"]
    other = found | {"evaluation": summary.summary | {"log_px": log_px}}
    assert reproduce.CELLS["log p(x)"](other) == f"{'at least ' * log_px['at_least']}{cell}"
    assert reproduce.CELLS["S"](found) == "40" and "IWAE bound, k = 100" not in reproduce.show(found)
    before = json.dumps(found["evaluation"]["elbo"])
    assert reproduce.main(options) == 0
    assert json.dumps(reproduce.stored("second", Path("stored"))["evaluation"]["elbo"]) == before
    more = ["cp -r runs/second runs/third", "python -m ppl_gen.evaluate runs/third --num-images 20"]
    Path("results.md").write_text(PAGE.format("Both", "\n".join(fits + more)))
    for _ in range(2):  # a second time the copy is there
        assert reproduce.main(["third", *options[1:]]) == 0
    third = reproduce.stored("third", Path("stored"))
    assert third["commands"] == fits + more and third["config"] == found["config"]
    assert third["evaluation"]["num_images"] == 20 and not Path("runs/third/second").exists()


def test_the_tables_of_a_script_are_stored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As it prints them, after the commands of the runs that it reads; what fails is not stored."""
    line = "python -m benchmarks.em --data digits --components 2 3 --iterations 1"
    (tmp_path / "results.md").write_text(PAGE.format("One", f"{line}\npython -m benchmarks.em2\n"))
    (tmp_path / "speed.md").write_text(PAGE.format("Two", "python -m benchmarks.growth"))
    recipes = reproduce.recipes(tmp_path)
    assert recipes == {"em": [line], "em2": ["python -m benchmarks.em2"]}  # times are no results
    options = ["--docs", str(tmp_path), "--results", str(tmp_path / "stored")]
    assert reproduce.main(["em", *options]) == 0
    found = reproduce.stored("em", tmp_path / "stored")
    printed = capfd.readouterr().out
    assert found["commands"] == [line] and found["tables"] == pages.tables_of(printed)
    ((header, *rows),) = found["tables"]
    assert header[:2] == ["expectation maximization", "log p(x)"] and [row[0] for row in rows] == ["K = 2", "K = 3"]
    assert reproduce.main(["em2", *options]) == 1 and not (tmp_path / "stored" / "em2.json").exists()
    fit = "python -m ppl_gen.fit vae --out runs/one"
    read = "python -m benchmarks.gradients runs/one --draws 3"
    (tmp_path / "results.md").write_text(PAGE.format("One", f"{fit}\n{read}\n"))
    assert reproduce.recipes(tmp_path)["gradients"] == [fit, read]


def test_cells_of_several_estimates() -> None:
    """Of a run whose primary estimate is not importance sampling: each by its own column."""
    entries = {
        "log_px": {"estimator": "quadrature", "mean": -1.0, "se": 0.5, "at_least": False},
        "log_px_importance": {"estimator": "importance", "mean": -2.0, "se": 0.5, "at_least": True},
        "log_px_settled": {"mean": -1.25, "se": 0.5, "at_least": True, "settled": {"fraction_left": 0.125}},
    }
    cells = reproduce._cells(reproduce.CELLS, {"evaluation": entries})
    assert cells["log p(x)"] == cells["exact, or by quadrature"] == "-1.00 ± 0.50"
    assert cells["importance sampling"] == "at least -2.00 ± 0.50"
    assert cells["settled log p(x)"] == "at least -1.25 ± 0.50" and cells["settled images"] == "87.5%"
    entries["log_px"], entries["log_px_settled"] = entries.pop("log_px_settled") | {"estimator": "settled"}, {}
    cells = reproduce._cells(reproduce.CELLS, {"evaluation": entries})
    assert cells["settled log p(x)"] == cells["log p(x)"] and cells["settled images"] == "87.5%"


def test_cells_of_uses() -> None:
    """What `evaluate --gaps`, `calibrate`, `splice` and `fill` find, each in its column."""
    coverage = {
        "levels": [0.5, 0.9],
        "joint": [{"mean": 0.2, "se": 0.5}, {"mean": 0.7512, "se": 0.0104}],
        "central": [{"mean": 0.2, "se": 0.5}, {"mean": 0.8, "se": 0.002}],
    }
    split = {"num_images": 100, "at_least": True}
    split |= {name: {"mean": -2.0, "se": 0.25} for name in ("elbo", "best_elbo", "log_px", "approximation")}
    found = {
        "gaps": {"contexts": split | {"amortization": {"mean": 3.0, "se": 0.5}}},
        "calibration": {"before": {"coverage": coverage}, "after": {"coverage": coverage}, "ess": {"median": 6.74}},
        "splice": {
            "roc_auc": {"mean": 0.8791, "se": 0.007},
            "two_sample_test": {"power": {"10": {"mean": 0.5, "se": 0.01}}},
        },
        "responsibilities": {
            "purity": {"mean": 0.71, "chance": 0.12},
            "error": {"q(y | x)": {"mean": 0.1538, "se": 0.0036}},
        },
        "fill": {"log_p_hidden": {"mean": -80.0, "se": 1.5, "bits_per_hidden_pixel": 0.2971}},
        "quality": {
            **{name: {"mean": 0.75, "se": 0.0125} for name in ("frechet", "kernel", "precision", "recall")},
            "classes": {"covered": 9, "divergence": 0.1874},
            "nearest": {"samples": 4.824},
        },
    }
    cells = reproduce._cells(reproduce.CELLS, found)
    assert cells["approximation gap"] == cells["log p(x) of these"] == "at least -2.00 ± 0.25"
    assert cells["amortization gap"] == "3.00 ± 0.50" and cells["ELBO of these"] == "-2.00 ± 0.25"
    assert cells["ELBO, best context of each image"] == "-2.00 ± 0.25" and cells["images of the split"] == "100"
    for after in ("", ", with weights"):
        assert cells[f"90 % regions hold{after}"] == "75.1 ± 1.0 %"
        assert cells[f"90 % intervals hold{after}"] == "80.0 ± 0.2 %"
    assert cells["effective samples of these"] == "6.7" and cells["ROC AUC"] == "0.879 ± 0.007"
    assert cells["power on 10 images"] == "0.500 ± 0.010" and cells["purity (chance)"] == "0.710 (0.120)"
    assert cells["wrong by q(y given x)"] == "15.38 ± 0.36 %" and "wrong by p(y given x)" not in cells
    assert cells["Fréchet distance"] == "0.75 ± 0.01" and cells["classes"] == "9" and cells["KL of classes"] == "0.187"
    assert {cells[name] for name in ("kernel distance", "precision", "recall")} == {"0.750 ± 0.013"}
    assert cells["nearest training image"] == "4.82"
    assert cells["log p(hidden given visible)"] == "-80.00 ± 1.50" and cells["bits per hidden pixel"] == "0.297"


def test_means_of_several_seeds() -> None:
    """± over images, ± over seeds; and Student's t for the interval, with 1 degree of freedom 12.71 errors."""

    def made(seed: int, log_px: float, at_least: bool) -> reproduce.Record:
        entry = {"estimator": "importance", "mean": log_px, "se": 0.25, "at_least": at_least, "num_samples": 5000}
        return {
            "config": {"training": {"objective": "stl", "epochs": 3, "seed": seed}},
            "minutes": {"training": 2.0 + seed},
            "evaluation": {"log_px": entry, "elbo": {"mean": -3.0 - seed, "se": 0.5}, "num_images": 10},
        }

    records = [made(0, -1.0, False), made(1, -1.5, True)]
    assert "for other seeds, 95 %" not in reproduce._cells(reproduce.CELLS, reproduce.mean_of(records[:1]))
    cells = reproduce._cells(reproduce.CELLS, reproduce.mean_of(records))
    assert cells["log p(x)"] == "at least -1.25 ± 0.25 ± 0.25" and cells["for other seeds, 95 %"] == "± 3.18"
    assert cells["ELBO"] == "-3.50 ± 0.50 ± 0.50" and "seed" not in cells
    assert cells["minutes of training"] == "2" and cells["images"] == "10"  # 2.5, to even
    assert (cells["objective"], cells["epochs"], cells["S"]) == ("stl", "3", "5,000")
    three = reproduce.mean_of([*records, made(2, -2.0, False)])
    assert reproduce._cells(reproduce.CELLS, three)["for other seeds, 95 %"] == "± 1.24"  # 4.303 errors


@pytest.mark.usefixtures("elsewhere")
def test_a_sweep_is_made_and_stored(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sweeps into one directory are one record: its rows are those of `compare`, with the ELBO of each epoch."""
    small = "--data digits --train-size 60 --epochs 2 --num-samples 30 --hidden-dims 4 --latent-dim 5"

    def here(words: list[str]) -> SimpleNamespace:
        guides, seeds = words[words.index("--guides") + 1 : words.index("--seeds")], ("0", "1")
        for guide, seed in product(guides, seeds):
            out = f"runs/both/vae-{guide}-{seed}"
            status, out, err = call(fit.command, "vae", *small.split(), "--guide", guide, "--seed", seed, "--out", out)
            assert status == 0, err
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=here))
    end = f"--seeds 0 1 --out runs/both -- {small}"
    sweeps = [f"python -m ppl_gen.sweep vae --guides {guides} {end}" for guides in ("normal student-t", "mixture")]
    Path("results.md").write_text(PAGE.format("Both", "\n".join(sweeps)))
    assert reproduce.main(["both", "--docs", ".", "--results", "stored"]) == 0
    found = reproduce.stored("both", Path("stored"))
    assert found["commands"] == sweeps and set(found["rows"]) == {"normal", "student-t", "mixture"}
    row, runs = found["rows"]["normal"], [Run.open(f"runs/both/vae-normal-{seed}") for seed in (0, 1)]
    assert row["runs"] == ["vae-normal-0", "vae-normal-1"] and "/" not in json.dumps(row)
    summaries = [run.evaluation.summary for run in runs if run.evaluation is not None]
    mean = (summaries[0]["elbo"]["mean"] + summaries[1]["elbo"]["mean"]) / 2
    assert reproduce.SWEEP_CELLS["ELBO"](row).startswith(f"{mean:.2f} ± ") and row["elbo"]["se_seeds"] > 0
    for split in ("train", "validation"):
        last = [
            json.loads(run.path.joinpath("metrics.jsonl").read_text().splitlines()[-1])[split]["elbo"] for run in runs
        ]
        assert len(row["epochs_elbo"][split]) == 3
        assert row["epochs_elbo"][split][-1] == pytest.approx(sum(last) / 2, abs=1e-3)
    times = [each["milliseconds"] for each in found["rows"].values()]
    assert min(times) > 0
    for each, time in zip(found["rows"].values(), times, strict=True):
        first, last = (each["epochs_elbo"]["validation"][at] for at in (0, -1))
        assert first < each["equal_time_elbo"] <= last and (each["equal_time_elbo"] == last) == (time == min(times))
    out = capsys.readouterr().out
    assert f"| normal | {' | '.join(reproduce._cells(reproduce.SWEEP_CELLS, row).values())} |" in out


NOT_PRINTED = {
    ("", "here", "Burda et al., Table 1"),
    ("", "Altosaar", "here"),
    ("", "data", "log p(x)"),
    ("question", "finding"),
    ("k-hat of importance sampling", "images", "annealing - importance, mean", "median", "beyond their errors"),
}
"""Tables of results that no run or script prints: words, what others published, findings that are links, and that of
the lines of Python above it."""


def test_rows_are_those_that_are_stored() -> None:
    """Each table whose first column is `name of the run`, or `row of` a sweep: each cell, and the commands. A cell with
    the names of several runs has their means. All other tables of results are those that a script printed."""
    recipes, used = reproduce.recipes(), set()
    printed = {}
    for name, commands in recipes.items():
        if commands[-1].startswith(reproduce.SCRIPT):
            found = reproduce.stored(name)
            assert found["commands"] == commands, name
            printed |= {name: found["tables"]}
    for page in pages.DOCS.glob("results*.md"):
        for rows in pages.tables_of(page.read_text(encoding="utf-8")):
            if rows[0][0] != "name of the run" and not rows[0][0].startswith("row of "):
                there = {name for name, tables in printed.items() if rows in tables}
                assert there or tuple(rows[0]) in NOT_PRINTED, (page.name, rows[0])
                used |= there
    for rows in pages.tables():
        first, *columns = rows[0]
        sweep = first.removeprefix("row of ")
        if first != "name of the run" and sweep == first:
            continue
        for name, *texts in rows[1:]:
            names = name.split(", ") if sweep == first else [sweep]
            found = [reproduce.stored(each) for each in names]
            for each, record in zip(names, found, strict=True):
                assert record["commands"] == recipes[each], each
            used.update(names)
            if sweep == first:
                there = reproduce._cells(reproduce.CELLS, reproduce.mean_of(found))
                cells = reproduce.CELLS
            else:
                there = reproduce._cells(reproduce.SWEEP_CELLS, found[0]["rows"][name])
                cells = reproduce.SWEEP_CELLS
            for column, text in zip(columns, texts, strict=True):
                if column not in reproduce.TYPED:
                    assert column in cells and text == there.get(column, ""), (name, column)
    assert used == {file.stem for file in reproduce.RESULTS.glob("*.json")}


@pytest.mark.drawn
def test_learning_curves(tmp_path: Path) -> None:
    """A line for each row, from epoch 0, against epochs and against minutes of one core; their names beside them."""
    found = reproduce.stored("backward")
    above, below = (each for each in learning_curves.draw(found).axes)
    for row, line, timed in zip(found["rows"].values(), above.lines, below.lines, strict=True):
        assert list(line.get_ydata()) == list(timed.get_ydata()) == row["epochs_elbo"]["validation"]
        assert list(line.get_xdata()) == list(range(11))
        minutes = 10 * row["steps_per_epoch"] * row["milliseconds"] / 1000 / 60
        assert timed.get_xdata()[-1] == pytest.approx(minutes)
        assert line.get_color() == GREEN  # no gradient of the ELBO
    assert {text.get_text() for text in below.texts} == set(found["rows"])
    assert learning_curves.color({"objective": "nvil"}) == BLUE
    assert learning_curves.color({"objective": "reinmax"}) == VERMILION
    learning_curves.main(["backward", "--out", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").exists()
    for none in ("nothing", "layers-one"):  # a run is no sweep
        with pytest.raises(SystemExit, match="2"):
            learning_curves.main([none])
    for shown in ("-5", "nan", "inf"):
        with pytest.raises(SystemExit, match="2"):
            learning_curves.main(["backward", "--shown", shown])


@pytest.mark.drawn
def test_two_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """log p(x) of each row less that of the best, on both data sets, as stored; the page has what is printed."""
    tables = {title: two_data_sets.values(*sweeps) for title, sweeps in two_data_sets.TABLES.items()}
    for axes, table in zip(two_data_sets.draw(tables).axes, tables.values(), strict=True):
        assert [text.get_text() for text in axes.get_yticklabels()] == list(table)
        for number, line in enumerate(axes.lines[-2:]):
            column = [pair[number] for pair in table.values()]
            assert list(line.get_xdata()) == pytest.approx([value - max(column) for value in column])
    for table in tables.values():
        assert [pair[1] for pair in table.values()] == sorted((pair[1] for pair in table.values()), reverse=True)
    two_data_sets.main(["--out", str(tmp_path / "both.png")])
    page = (pages.DOCS / "results-fashion.md").read_text(encoding="utf-8")
    assert (tmp_path / "both.png").exists() and capsys.readouterr().out in page


def test_stored_results_name_no_place_of_a_machine() -> None:
    for file in reproduce.RESULTS.glob("*.json"):
        assert not re.search(r'"(/|[A-Z]:)', file.read_text(encoding="utf-8")), file
