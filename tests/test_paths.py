"""Options that take a path: what is no path, or may not be read or written, is one line, and status 2."""

import html
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fits import interrupt_after

from ppl_gen import calibrate, compare, evaluate, fill, fit, quality, sample, sweep
from ppl_gen.core.errors import BadInput
from ppl_gen.data import downloads
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.report.run_page import write_report
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]
DIGITS = ("--data", "digits")
OPTIONS: dict[str, tuple[Callable[[list[str]], Any], tuple[str, ...]]] = {
    "fit --out": (fit.command, ("vae", *DIGITS, "--out", "{}")),
    "fit --data": (fit.command, ("vae", "--data", "{}")),
    "fit --data FILE": (fit.command, ("vae", "--data", "{}.npy")),
    "fit --data FILE:ARRAY": (fit.command, ("vae", "--data", "{}.npz:a")),
    "fit --data file.py:function": (fit.command, ("vae", "--data", "{}.py:f")),
    "fit --resume": (fit.command, ("--resume", "{}")),
    "fit --init-from": (fit.command, ("vae", *DIGITS, "--init-from", "{}")),
    "fit MODEL": (fit.command, ("{}.py:C", *DIGITS)),
    "fit --guide": (fit.command, ("vae", *DIGITS, "--guide", "{}.py:C")),
    "fit --prior": (fit.command, ("vae", *DIGITS, "--prior", "{}.py:C")),
    "fit --objective": (fit.command, ("vae", *DIGITS, "--objective", "{}.py:C")),
    "evaluate RUN": (evaluate.command, ("{}",)),
    "evaluate --proposals": (evaluate.command, ("run", "--proposals", "{}")),
    "evaluate --estimator": (evaluate.command, ("run", "--estimator", "{}.py:f")),
    "sample RUN": (sample.command, ("{}",)),
    "sample --out": (sample.command, ("run", "--out", "{}.png")),
    "fill --hide": (fill.command, ("run", "--hide", "{}.npy")),
    "quality RUN": (quality.command, ("{}",)),
    "calibrate RUN": (calibrate.command, ("{}",)),
    "calibrate --out": (calibrate.command, ("--out", "{}")),
    "compare RUN": (compare.command, ("{}",)),
    "compare --figure": (compare.command, ("run", "--figure", "{}.png")),
    "compare --posteriors": (compare.command, ("run", "--posteriors", "{}.png")),
    "compare --report": (compare.command, ("run", "--report", "{}.html")),
    "sweep --out": (sweep.command, ("vae", "--out", "{}", "--", *DIGITS)),
}
PATHS = ("n" * 256, "n/" * 2500 + "n", "a\0b", "loop/x", "locked/x", "file/x")
"""Too long, too deep, with a zero byte, through a link to itself, in a folder without permission, below a file."""


@pytest.fixture
def here(elsewhere: Path, fitted: Path, unprivileged: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(fitted, "run")
    Path("loop").symlink_to("loop")
    Path("file").write_text("")
    Path("locked").mkdir()
    Path("locked").chmod(0)
    monkeypatch.setattr(downloads, "SERVERS", dict.fromkeys(downloads.SERVERS, "http://127.0.0.1:9/"))
    yield elsewhere
    Path("locked").chmod(0o700)


@pytest.mark.parametrize("name", OPTIONS)
def test_no_path(here: Path, call: Call, name: str) -> None:
    command, arguments = OPTIONS[name]
    before = sorted(here.rglob("*"))
    for path in PATHS:
        status, out, err = call(command, *(argument.replace("{}", path) for argument in arguments))
        assert status == 2 and out == "", (path[:20], err)
        assert err.startswith("error: ") and err.count("\n") == 1, (path[:20], err)
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("name", ["mnist", "binarized-mnist", "auto"])
def test_the_data_folder(here: Path, call: Call, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for path in PATHS:
        if "\0" in path or (path == "file/x" and name == "auto"):  # a file has nothing in it, so that auto goes on
            continue
        monkeypatch.setenv("PPL_GEN_DATA", path)
        status, _, err = call(fit.command, "vae", "--data", name, "--out", "new")
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, (path[:20], err)
    assert not Path("new").exists() and not Path("data").exists()


@pytest.mark.parametrize(
    ("file", "option"),
    [
        ("config.json", "evaluate RUN"),
        ("config.json", "compare RUN"),
        ("config.json", "fit --resume"),
        ("config.json", "fit --init-from"),
        ("evaluation.json", "compare RUN"),
        ("evaluation.nc", "compare RUN"),
        ("checkpoint.safetensors", "evaluate RUN"),
        ("checkpoint.safetensors", "fit --resume"),
        ("metrics.jsonl", "fit --resume"),
    ],
)
def test_a_run_that_may_not_be_read(here: Path, call: Call, file: str, option: str) -> None:
    Path("run", file).chmod(0)
    command, arguments = OPTIONS[option]
    status, _, err = call(command, *(argument.replace("{}", "run") for argument in arguments))
    last = err.splitlines()[-1]
    assert status == 2 and last.startswith("error: ") and file in last and "Permission denied" in last, err
    assert "Traceback" not in err


def test_folders_that_may_not_be_written(here: Path, call: Call) -> None:
    Path("closed").mkdir(mode=0o500)
    for name in ("fit --out", "sweep --out", "calibrate --out", "sample --out", "compare --figure", "compare --report"):
        command, arguments = OPTIONS[name]
        status, _, err = call(command, *(argument.replace("{}", "closed/new") for argument in arguments))
        assert status == 2 and err.splitlines()[-1].startswith("error: ") and "closed" in err, (name, err)
    assert not list(Path("closed").iterdir())


def test_from_python(here: Path) -> None:
    for path in PATHS:
        for attempt in (
            lambda path=path: Run.open(path),
            lambda path=path: Run.fit("vae", data="digits", out=path),
            lambda path=path: Run.fit("vae", data=f"{path}.npy"),
            lambda path=path: Run.fit("vae", data="digits", init_from=path),
            lambda path=path: Run.fit("vae", data="digits", guide=f"{path}.py:C"),
        ):
            with pytest.raises(BadInput) as error:
                attempt()
            assert len(error.value.sentence.splitlines()) == 1


def test_names_that_are_unusual(here: Path, call: Call) -> None:
    """Blanks, quotes, other scripts and a leading tilde are names as others are. The lines that are printed can be
    pasted."""
    shutil.copytree("run", "bare")
    for file in ("checkpoint.safetensors", "evaluation.nc"):
        Path("bare", file).unlink()
    for name in ("my runs/it's $HOME;x", "~/a", "日本/é", "./-x/b", "dots/../dots/./run/", "a--seed 1"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree("bare", name)
        for (command, *arguments), before, words in (
            ((evaluate.command, name), "train it with ", ["--resume"]),
            ((compare.command, name), "evaluate it: ", ["python", "-m", "ppl_gen.evaluate"]),
            ((fit.command, "vae", *DIGITS, "--out", name), "continue it with ", ["--resume"]),
        ):
            status, _, err = call(command, *arguments)
            *told, path = shlex.split(err.rstrip("\n").partition(before)[2])
            assert status == 2 and told == words and Path(path) == Path(name), err
        with pytest.raises(BadInput) as error:
            _ = Run.open(name).fitted
        call_of_it = str(error.value).partition("train it with ")[2]
        assert eval(call_of_it.removesuffix(".resume()"), {"Run": Run}).path == Path(name), call_of_it


def test_an_interrupted_run_says_how_to_go_on(here: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path("my guides/it's mine.py")
    own.parent.mkdir()
    own.write_text("from ppl_gen.guides.normal import Normal\n\n\nclass Mine(Normal):\n    pass\n")
    name, guide = "my runs/it's $HOME;x", f"{own}:Mine"
    options = ("--epochs", "3", "--train-size", "60", "--num-samples", "5", "--hidden-dims", "4", "--latent-dim", "2")
    with monkeypatch.context() as patch:
        interrupt_after(4, patch)
        status, _, err = call(fit.command, "vae", *DIGITS, *options, "--guide", guide, "--out", name)
    assert status == 1
    again = shlex.split(err.splitlines()[-1].partition("continue with: ")[2])
    assert again == ["python", "-m", "ppl_gen.fit", "--resume", name, "--guide", guide]


def test_the_page_of_a_run_and_of_a_comparison(here: Path, call: Call) -> None:
    name = "my runs/it's $HOME;x"
    shutil.copytree("run", name)
    write_report(RunDirectory.open(name))
    assert call(compare.command, name, "--report", "it's a page.html")[0] == 0
    for page, *words in (
        (f"{name}/report.html", "ppl_gen.fit", "--resume", name),
        (f"{name}/report.html", "ppl_gen.evaluate", name),
        ("it's a page.html", "ppl_gen.compare", name, "--report", "it's a page.html"),
    ):
        text = html.unescape(re.sub(r"</?span>", "", Path(page).read_text(encoding="utf-8")))
        assert shlex.join(["python", "-m", *words]) in text, page
