"""`compare`: what is typed, what is printed, and what is refused."""

import csv
import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from written import write

from ppl_gen import compare
from ppl_gen.comparison import Comparison

Call = Callable[..., tuple[int, str, str]]


def test_runs_of_today_need_no_torch(elsewhere: Path) -> None:
    """Nor do those of different models."""
    paths = [write("a", [-2, -1], [-2, -1]), write("b", [-2, -1], [-2, -1], model="mixture", model_options={"k": 2})]
    code = "import sys; from ppl_gen import compare; compare.command(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True, capture_output=True)


def test_markdown_is_a_table(elsewhere: Path, call: Call) -> None:
    paths = [write("a", [-2, -1], [-2, -1], guide="f.py:A|B"), write("b", [-3, -1], [-2.5, -1])]
    status, out, _ = call(compare.command, *paths, "--format", "markdown")
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert status == 0 and len(lines) == 4 and len(set(map(len, lines))) == 1
    cells = [line.replace("\\|", "").strip("|").split("|") for line in lines]
    assert len(set(map(len, cells))) == 1
    assert all(set(cell.strip()) <= {"-", ":"} and "-" in cell for cell in cells[1])
    assert out.index("all rows: model vae") < out.index("|")
    block = out.split("\n\n")[1].splitlines()
    assert block == lines  # one block, with a blank line before and after


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation.data": "mnist"}, ["data is digits in the first and mnist in the second"]),
        ({"evaluation.split": "train"}, ["split is test in the first and train"]),
        ({"evaluation.binarization": "dynamic"}, ["binarization is static in the first and dynamic"]),
        ({"evaluation.observation": "density"}, ["observation is probability in the first and density"]),
        ({"data.static_seed": 4}, ["static_seed is None in the first and 4"]),
        ({"labels": [1, 0]}, ["labels is one set in the first and another"]),
        ({}, ["the same configuration and seed, 0"]),
    ],
)
def test_not_the_same_images(elsewhere: Path, call: Call, changes: dict[str, Any], words: list[str]) -> None:
    paths = [write("first", [-2, -1], [-2, -1]), write("second", [-2, -1], [-2, -1], **changes)]
    status, out, err = call(compare.command, *paths, "--figure", "f.png")
    assert status == 2 and out == "" and err.count("\n") == 1 and not Path("f.png").exists()
    for word in ("error: first and second", *words):
        assert word in err, err


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: (p / "evaluation.json").unlink(), ["no evaluation.json", "python -m ppl_gen.evaluate run"]),
        (lambda p: (p / "evaluation.nc").unlink(), ["no evaluation.nc", "python -m ppl_gen.evaluate run"]),
        (lambda p: (p / "config.json").unlink(), ["not a run directory"]),
        (lambda p: shutil.rmtree(p), ["no such run directory"]),
        (lambda p: (p / "evaluation.nc").write_bytes(b"hello"), ["evaluation.nc: damaged", "ppl_gen.evaluate run"]),
        (
            lambda p: (p / "evaluation.nc").write_bytes((p / "evaluation.nc").read_bytes()[:-3000]),
            ["evaluation.nc: damaged"],
        ),
        (lambda p: (p / "evaluation.json").write_text("{"), ["evaluation.json: damaged"]),
        (lambda p: (p / "evaluation.json").write_text("{}"), ["evaluation.json: damaged"]),
        (lambda p: (p / "evaluation.json").write_text("[]"), ["evaluation.json: damaged"]),
    ],
)
def test_damaged(elsewhere: Path, call: Call, damage: Callable[[Path], Any], words: list[str]) -> None:
    damage(write("run", [-2, -1], [-2, -1]))
    status, out, err = call(compare.command, "run")
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("error: "), err
    for word in words:
        assert word in err, err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gaps.json", '{"contexts": 3}', "make it again: python -m ppl_gen.evaluate run --gaps"),
        ("calibration.json", "[" * 5000, "make it again: python -m ppl_gen.calibrate run"),
        ("posteriors.npz", "text", "make it again: python -m ppl_gen.fit --resume run"),
        ("metrics.jsonl", '{"epoch": "3"}\n', "line 1 is damaged and left out"),
    ],
)
def test_a_damaged_file_beside_the_evaluation_is_left_out(
    elsewhere: Path, call: Call, name: str, content: str, words: str
) -> None:
    (write("run", [-2, -1], [-2, -1]) / name).write_text(content)
    status, out, err = call(compare.command, "run", "--report", "page.html")
    assert status == 0 and "vae" in out and err.count("\n") == 1, err
    assert err.startswith(f"warning: run/{name}: ") and words in err


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"nc.num_images": 7}, "num_images"),
        ({"nc.seed": 7}, "seed"),
        ({"nc.num_samples": 7}, "num_samples"),
        ({"evaluation.elbo.mean": -1.4}, "mean elbo"),
    ],
)
def test_another_evaluation_s_values(elsewhere: Path, call: Call, changes: dict[str, Any], word: str) -> None:
    status, _, err = call(compare.command, write("run", [-2, -1], [-2, -1], **changes))
    assert status == 2 and "does not belong to the evaluation.json beside it" in err and f"another {word})" in err


def test_bad_command_lines(elsewhere: Path, call: Call) -> None:
    run = write("run", [-2, -1], [-2, -1], guide="mine.py:Mine")
    for arguments, word in (
        ((), "name at least one run"),
        ((run, "--format", "html"), "--format"),
        ((run, "--figure", "f.pdf"), "--figure f.pdf: must end in .png"),
        ((run, "--figure", "no/f.png"), "--figure no/f.png"),
    ):
        status, out, err = call(compare.command, *arguments)
        assert status == 2 and out == "" and word in err and err.count("\n") == 1, err
    (run / "evaluation.nc").unlink()
    assert "ppl_gen.evaluate run --guide mine.py:Mine" in call(compare.command, run)[2]


def test_options_that_came_later_need_no_torch(elsewhere: Path) -> None:
    """Their defaults are known without it."""
    later = {"training.adam_beta1": 0.9, "data.largest_pixel": None, "fixed_model": False}
    paths = [write("a", [-2, -1], [-2, -1]), write("b", [-2, -1], [-2, -1], **later, **{"training.seed": 1})]
    code = "import sys; from ppl_gen import compare; compare.command(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths), "--format", "json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [row["seeds"] for row in json.loads(done.stdout)["rows"]] == [[0, 1]]


def test_every_format_is_the_comparison_s(elsewhere: Path, call: Call) -> None:
    paths = [write("a", [-2, -1], [-2, -1], guide="f.py:A|B"), write("b", [-3, -1], [-2.5, -1])]
    comparison = Comparison(paths)
    expected = {"text": str(comparison), "markdown": comparison.to_markdown(), "csv": comparison.to_csv()}
    for format, text in expected.items():
        assert call(compare.command, *paths, "--format", format) == (0, f"{text}\n", "")
    status, out, err = call(compare.command, *paths, "--format", "json")
    assert (status, err) == (0, "") and json.loads(out) == json.loads(json.dumps(comparison.to_json()))


def test_starts_without_torch(elsewhere: Path) -> None:
    run = write("run", [-2, -1], [-2, -1])
    code = "import sys; from ppl_gen import compare; compare.command(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, str(run), "--figure", "f.png"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_term_that_does_not_exist_is_blank(elsewhere: Path, call: Call) -> None:
    exact = write("exact", [-3, -5], [-3, -5], model="mixture", **{"evaluation.log_px.estimator": "exact"})
    doubted = {"evaluation.log_px.at_least": True, "evaluation.gap.at_least": True}
    sampled = write("sampled", [-5, -6], [-4, -6], **doubted, **{"training.num_particles": 5})
    status, out, _ = call(compare.command, exact, sampled, "--format", "csv")
    first, second = csv.DictReader(io.StringIO(out))
    assert status == 0
    for key in (
        "gap.mean",
        "khat_median",
        "ess_median",
        "active_units",
        "iwae.mean",
        "log_px_difference.mean",
        "prior",
    ):
        assert first[key] == ""
    assert (first["log_px.estimator"], first["log_px.at_least"], first["runs"]) == ("exact", "False", "exact")
    assert (second["log_px.num_samples"], second["log_px.at_least"], second["objective"]) == ("100", "True", "elbo-5")
    assert float(second["log_px_difference.mean"]) == -1 and float(second["iwae.mean"]) == -5.4

    result = json.loads(call(compare.command, exact, sampled, "--format", "json")[1], parse_constant=pytest.fail)
    assert result["rows"][0]["gap"]["mean"] is None and result["images"]["num_images"] == 2
    text = str(Comparison([exact, sampled]))
    rows = text.splitlines()
    assert "≥ -5.00 ± 1.00" in text and "≥ 0.50" in text and " 0.00 " not in rows[2]
    assert "an exact one, or one by quadrature, is not" in text and "k-hat is too high or unknown" in text
    assert len({line.index("S") for line in rows if " S " in line}) == 1

    single = write("single", [-5], [-4])
    (row,) = json.loads(call(compare.command, single, "--format", "json")[1], parse_constant=pytest.fail)["rows"]
    assert row["log_px"]["se"] is None
    infinite = write(
        "infinite", [-math.inf, -1], [-math.inf, -2], **{"evaluation.elbo.mean": None, "evaluation.log_px.mean": None}
    )
    rows = json.loads(call(compare.command, infinite, exact, "--format", "json")[1], parse_constant=pytest.fail)["rows"]
    assert rows[1]["runs"] == ["infinite"] and rows[1]["log_px"]["mean"] == "-Infinity"
