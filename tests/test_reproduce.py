"""Rows of the documentation's tables are those of stored runs, and are made again by name."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import Call

from benchmarks import pages, reproduce
from ppl_gen import evaluate, fit
from ppl_gen.run import Run

PAGE = "# Title\n\n## {}\n\nText.\n\n```bash\n{}\n```\n"


def test_the_commands_of_a_heading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They run until one fails; a heading that is none, or several, is refused."""
    every = reproduce.sections()
    assert every["The default VAE"][0] == "python -m ppl_gen.fit vae --data mnist --out runs/default"
    assert all(line.startswith(("python -m ", "torchrun ")) for commands in every.values() for line in commands)
    (tmp_path / "results.md").write_text("# Results\n")
    (tmp_path / "results-one.md").write_text(PAGE.format("One", "python -c 1\npython -c 2"))
    (tmp_path / "speed.md").write_text(PAGE.format("Two", "false\ntrue"))
    docs = ["--docs", str(tmp_path)]
    assert reproduce.main(["one", *docs]) == 0 and capsys.readouterr().out.count("$ python -c") == 2
    assert reproduce.main(["two", *docs]) == 1 and "true" not in capsys.readouterr().out
    assert reproduce.main(["two", "--dry-run", *docs]) == 0 and "$ true" in capsys.readouterr().out
    assert reproduce.main(docs) == 0 and capsys.readouterr().out == "Runs:\n\nHeadings:\nOne\nTwo\n"
    for title, count in (("Three", 0), ("", 2)):
        assert reproduce.main([title, *docs]) == 2
        assert f"'{title}' is no run, and begins {count} headings" in capsys.readouterr().err
    (tmp_path / "speed-of-one.md").write_text(PAGE.format("One", "python -c 3"))
    with pytest.raises(ValueError, match="two headings with commands are 'One'"):
        reproduce.sections(tmp_path)


def test_the_commands_of_a_run() -> None:
    """Those of the run that it starts from come first, and evaluations of it last."""
    every = reproduce.recipes()
    assert [reproduce._after(line, "--out") for line in every["two-layers-50"]] == [
        "two-layers",
        "two-layers-5",
        "two-layers-50",
    ]
    assert every["default"][-1] == "python -m ppl_gen.evaluate runs/default --num-samples 5000"


@pytest.mark.usefixtures("elsewhere")
def test_a_run_is_made_and_stored(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run and what starts from it; what stopped goes on; what is stored are the run's own numbers."""
    modules = {"ppl_gen.fit": fit.command, "ppl_gen.evaluate": evaluate.command}

    def here(words: list[str]) -> SimpleNamespace:
        status, out, err = call(modules[words[2]], *words[3:])
        print(out, err)
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=here))
    small = "--data digits --train-size 60 --epochs {} --num-samples 30 --hidden-dims 4 --latent-dim 5 --out runs/{}"
    fits = [
        f"python -m ppl_gen.fit vae {small.format(1, 'first')}",
        f"python -m ppl_gen.fit vae --init-from runs/first {small.format(2, 'second')}",
        "python -m ppl_gen.evaluate runs/second --num-samples 40",
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
    log_px["at_least"] = not log_px["at_least"]
    other = found | {"evaluation": summary.summary | {"log_px": log_px}}
    assert reproduce.CELLS["log p(x)"](other) == f"{'at least ' * log_px['at_least']}{cell}"
    assert reproduce.CELLS["S"](found) == "40" and "IWAE bound, k = 100" not in reproduce.show(found)
    before = json.dumps(found["evaluation"]["elbo"])
    assert reproduce.main(options) == 0
    assert json.dumps(reproduce.stored("second", Path("stored"))["evaluation"]["elbo"]) == before


def test_rows_of_runs_are_those_that_are_stored() -> None:
    """Each table whose first column is `name of the run`: each cell, and the commands that make the run."""
    recipes, used = reproduce.recipes(), set()
    for rows in pages.tables():
        if rows[0][0] != "name of the run":
            continue
        for name, *cells in rows[1:]:
            found = reproduce.stored(name)
            used.add(name)
            assert found["commands"] == recipes[name], name
            for column, cell in zip(rows[0][1:], cells, strict=True):
                if column not in reproduce.TYPED:
                    assert cell == reproduce.CELLS[column](found), (name, column)
    assert used == {file.stem for file in reproduce.RESULTS.glob("*.json")}


def test_stored_results_name_no_place_of_a_machine() -> None:
    for file in reproduce.RESULTS.glob("*.json"):
        assert not re.search(r'"(/|[A-Z]:)', file.read_text(encoding="utf-8")), file
