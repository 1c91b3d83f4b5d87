"""The commands and code of README and docs, run reduced, in their order, in an empty directory."""

import argparse
import contextlib
import glob
import importlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from ppl_gen import calibrate, evaluate, fit, gradients, quality, sweep
from ppl_gen.core import cli
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.config import Config
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.models.gan import GAN
from ppl_gen.run import Run
from ppl_gen.training import engines, rows

ROOT = Path(__file__).parents[1]
Call = Callable[..., tuple[int, str, str]]
FitOnce = Callable[[Call, list[str]], tuple[int, str, str]]
BENCHMARKS = {
    "benchmarks.attacks": shlex.split("--jobs mixture --kills 1 --writers"),
    "benchmarks.closed_form": shlex.split(
        "--data digits --units 1 2 --num-samples 10 --num-temperatures 3 --num-images 3 --out figures"
    ),
    "benchmarks.gap": shlex.split("--units 2 --data digits --epochs 1 --num-samples 30 --runs gap --out gap.png"),
    "benchmarks.gradients": ["--draws", "3"],
    "benchmarks.null_comparisons": ["--repetitions", "20"],
    "benchmarks.processes": shlex.split("--batch-sizes 10 --images-per-process 10 --rounds 2"),
    "benchmarks.questions": shlex.split("--data digits --fits 3 --epochs 1 --out figures"),
    "benchmarks.trusted": shlex.split("--small --models normal-5 --out trusted"),
    "benchmarks.wall": shlex.split("--ways ours --max-units 1 --out wall.png"),
}
QUICK_ANNEALING = shlex.split("--annealed.num-temperatures 4 --annealed.leapfrog-steps 2 --sandwich 3")
REDUCED = {"--data": "digits", "--train-size": "150", "--epochs": "1", "--num-samples": "30"}
REDUCED_GAN = {"--latent-dim": "4", "--hidden-dims": "8"}  # annealing, by which it is evaluated, takes most of its time


def _blocks(page: str) -> list[tuple[str, str]]:
    """Fenced blocks of a page, as (language, text)."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _commands(text: str) -> list[list[str]]:
    """`python -m ppl_gen.…` in each line, as arguments; what torchrun would start, too (`test_processes.py` does)."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] and words[0].endswith(("python", "torchrun")) and "-m" in words:
                found.append(words[words.index("-m") + 1 :])
    return found


def _reduce(arguments: list[str]) -> list[str]:
    for flag, value in (REDUCED | (REDUCED_GAN if arguments[:1] == ["gan"] else {})).items():
        if flag == "--data" and any(word.endswith(".npz") for word in arguments):
            continue  # what the page has made
        if flag in arguments:
            arguments[arguments.index(flag) + 1] = value
        else:
            arguments += [flag, value]
    if "--num-particles" in arguments:
        place = arguments.index("--num-particles") + 1
        arguments[place] = str(min(10, int(arguments[place])))
    return arguments


def _reduce_code(text: str) -> str:
    """Python with one seed, at most 4 epochs (some pages stop after 3), and of the digits as few as in commands."""
    text = text.replace("seeds=2", "seeds=1")
    text = re.sub(r'(?<!resume\()(\bepochs"?(?:=|: ))\d\d+', r"\g<1>4", text)
    few = r"\g<0>, \1train_size\2\g<3>150, \1num_samples\2\g<3>30"
    return re.sub(r'("?)\bdata("?)(=|: )"digits"', few, text)


def _reduce_sweep(arguments: list[str]) -> list[str]:
    """The first seed of each combination, and one option that varies, with reduced options of fit. A plane of latents
    would be drawn."""
    varied = [index for index, word in enumerate(arguments) if word == "--vary"]
    for index in reversed(varied[1:]):
        end = next(i for i in range(index + 1, len(arguments)) if arguments[i].startswith("--"))
        arguments = arguments[:index] + arguments[end:]
    cut, seeds = arguments.index("--"), arguments.index("--seeds") + 1
    after = next(i for i in range(seeds, cut) if arguments[i].startswith("--"))
    line = ["--latent-dim", "1"] if "vae" in arguments else []
    return [*arguments[: seeds + 1], *arguments[after:cut], "--", *_reduce(arguments[cut + 1 :]), *line]


def _in_this_process(call: Call) -> SimpleNamespace:
    """What a sweep needs of `subprocess`, for `fit` in this process. `test_sweep.py` has its processes."""

    class Process:
        def __init__(self, arguments: list[str], *, stdout: IO[bytes], **_: Any) -> None:
            assert arguments[1:3] == ["-m", "ppl_gen.fit"]
            self.returncode, out, err = call(fit.command, *arguments[3:])
            stdout.write(f"{out}{err}".encode())

        def poll(self) -> int:
            return self.returncode

        wait = poll

    return SimpleNamespace(Popen=Process, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)


@pytest.fixture(scope="session")
def fit_once(tmp_path_factory: pytest.TempPathFactory) -> FitOnce:
    """`fit`, each configuration and run directory once. Many pages begin with the same fit: after the first one, the
    others have a copy of its run and what it printed. The same words give the same bits (`test_fit.py`). A fit that
    reads files or other runs is not copied."""
    kept, done = tmp_path_factory.mktemp("kept"), dict[str, tuple[Path, tuple[int, str, str]]]()

    def run(call: Call, arguments: list[str]) -> tuple[int, str, str]:
        if "--out" not in arguments or {"--resume", "--init-from", "--dry-run", "--help"} & set(arguments):
            return call(fit.command, *arguments)
        config, options = fit.parse(arguments)
        if config.externals() or config.estimator or config.data.data != "digits" or options.out.exists():
            return call(fit.command, *arguments)
        key = f"{options.out} {config}"
        if key not in done:
            result = call(fit.command, *arguments)
            done[key] = shutil.copytree(options.out, kept / str(len(done))), result
        else:
            shutil.copytree(done[key][0], options.out)
        return done[key][1]

    return run


DOCS = sorted((ROOT / "docs").glob("*.md"), key=lambda page: page.stem)
LONG = [f"docs/{page.name}" for page in DOCS if page.stem.startswith(("results", "speed"))]  # only parsed
SHORT = ["README.md", *(f"docs/{page.name}" for page in DOCS if f"docs/{page.name}" not in LONG)]
PAGES = [
    page
    for page in SHORT
    if any("ppl_gen" in text for language, text in _blocks(page) if language in ("bash", "python"))
]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_page(page: str, elsewhere: Path, call: Call, fit_once: FitOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = 0
    quick = {"num_images": 5, "sandwich": 3, "annealed": {"num_temperatures": 4, "leapfrog_steps": 2}}
    monkeypatch.setattr(GAN, "evaluation_defaults", GAN.evaluation_defaults | quick)
    monkeypatch.setattr(engines, "subprocess", _in_this_process(call))
    monkeypatch.setattr(rows, "_STEPS", 3)  # steps for the parameters of test images
    for language, text in _blocks(page):
        if language == "text" or (language == "sh" and page == "docs/install.md"):
            continue  # installing needs the network
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            if name:
                assert len(text.splitlines()) <= 30  # a skeleton
                Path(name[1]).write_text(text)
            else:
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile(_reduce_code(text), page, "exec"), {})
                assert out.getvalue()
                ran += 1
            continue
        assert language == "bash"
        for module, *arguments in _commands(text):
            if module == "pytest":
                continue  # that is this
            if module.startswith("benchmarks."):
                monkeypatch.setattr(sys, "argv", [module, *arguments, *BENCHMARKS[module]])
                importlib.import_module(module).main()
                ran += 1
                continue
            arguments = [name for word in arguments for name in (sorted(glob.glob(word)) if "*" in word else [word])]
            command = importlib.import_module(module).command
            if command is fit.command and not {"--resume", "--help"} & set(arguments):
                arguments = _reduce(arguments)
            elif command is sweep.command:
                arguments = _reduce_sweep(arguments)
            elif command is evaluate.command:
                arguments = [*arguments, "--num-images", "10", *(QUICK_ANNEALING if "annealed" in arguments else [])]
            elif command is quality.command:
                arguments += shlex.split("--num-images 30 --classifier-steps 20")
            elif command is gradients.command:
                arguments += shlex.split("--num-images 5 --draws 20 --warm-up 2")
            elif command is calibrate.command and not arguments[0].startswith("-"):
                arguments += shlex.split("--num-images 30 --num-samples 30")
            elif command is calibrate.command:
                arguments += shlex.split("--repetitions 2 --num-images 1 --num-samples 25 --num-temperatures 3")
            status, out_text, err = fit_once(call, arguments) if command is fit.command else call(command, *arguments)
            assert status == 0, f"{arguments}: {err}"
            assert out_text
            ran += 1
    assert ran


# What a page has for its reader ----------------------------------------------------------------------------------


def _sentences(text: str) -> list[str]:
    """The sentences of a page, without code, tables, headings and the targets of links."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^(\||!\[|#|:::).*$", "", prose, flags=re.MULTILINE)
    parts = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", re.sub(r"\]\([^)]*\)", "]", prose))
    return [each for part in parts for each in re.split(r"(?<=[.!?]) (?=[A-Z\"`*\[(])", " ".join(part.split())) if each]


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page.name}" for page in DOCS)])
def test_a_page_is_short_and_its_figures_have_captions(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(text.split()) <= 1500
    title, first = re.findall(r"^(?!```|:::|\(|\|).+", text, re.MULTILINE)[:2]
    assert title.startswith("# ")
    if page != "README.md":
        assert first.startswith("For "), "the first sentence says whom the page serves"
        figures = re.findall(r"^:::\{figure-md\}\n!\[[^\]]{10,}\]\(figures/\w+\.png\)\n\n\S", text, re.MULTILINE)
        assert len(figures) == text.count("](figures/")
    for sentence in _sentences(text):
        assert len(sentence.split()) <= 40 and not sentence.startswith("Of "), sentence


class _Parsed(Exception):
    """Raised in the place of what a command would do."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], None]:
    """Of a command, up to its options."""
    parse, parse_args = cli.parse, argparse.ArgumentParser.parse_args

    def parsed(*arguments: Any) -> None:
        parse(*arguments)
        raise _Parsed

    def parsed_args(parser: argparse.ArgumentParser, arguments: Any = None) -> None:
        parse_args(parser, arguments)
        raise _Parsed

    def only(module: str, arguments: list[str]) -> None:
        with monkeypatch.context() as patched, pytest.raises(_Parsed):
            patched.setattr(cli, "parse", parsed)
            patched.setattr(argparse.ArgumentParser, "parse_args", parsed_args)
            patched.setattr(sys, "argv", [module, *arguments])
            if module.startswith("ppl_gen."):
                importlib.import_module(module).command(arguments)
            else:
                importlib.import_module("benchmarks.__main__" if module == "benchmarks" else module).main()

    return only


def test_results_are_commands_that_parse(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, only_parse: Callable[[str, list[str]], None]
) -> None:
    """Minutes of work each: only their options are read. Their runs have a configuration, for others to start from."""
    configs = []
    data = load_data(DataOptions("digits"))

    def note(config: Config, *, out: Path) -> Run:
        configs.append(config)
        directory = RunDirectory.create(out, "run", config.to_json(data))
        directory.writes = False  # there is no evaluation to print
        return Run(directory)

    monkeypatch.setattr(Run, "start", note)
    count = 0
    for language, text in [block for page in LONG for block in _blocks(page)]:
        if language == "bash":
            for module, *arguments in _commands(text):
                count += 1
                if module == "ppl_gen.fit":
                    fit.command(arguments)
                    continue
                only_parse(module, arguments)
                if module == "ppl_gen.sweep":
                    fit.parse([arguments[0], *arguments[arguments.index("--") + 1 :]])
    assert len(configs) >= 4 and count >= len(configs)


def test_the_two_commands_install_and_run() -> None:
    """Each is one line that makes an environment, installs with the tested versions, and runs."""
    first, second = (text.strip() for _, text in _blocks("README.md")[:2])
    for command, ending in ((first, "-m ppl_gen.fit vae"), (second, "-m pytest")):
        assert "\n" not in command and command.endswith(ending)
        assert "python3 -m venv .venv" in command and "pip install -c constraints.txt -e" in command


def _anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub and the site have them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = [re.sub(r"[`*]|\]\(.*?\)|\[", "", title) for title in re.findall(r"^#+ (.*)", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in headings}


def test_links_lead_somewhere() -> None:
    """To a file, and to a heading of it where one is named."""
    pages = [*ROOT.glob("*.md"), *(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)]
    anchored = 0
    for page in (*pages, ROOT / "runs" / "README.md"):
        for target, _, anchor in re.findall(r"\]\(([^)#\s]*)(#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                file = page.parent / target if target else page
                assert file.exists(), f"{page}: {target}"
                if anchor:
                    assert anchor in _anchors(file), f"{page}: {target}#{anchor}"
                    anchored += 1
    assert anchored > 10
