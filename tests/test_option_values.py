"""Values of every option of every command, drawn from the type that the option declares, absurd ones included.

A command ends with status 0, 1 or 2 and, unless it is 0, with one line of an error. `fit` checks model, guide and data
on a few images; the work of the other commands is left out, since their options are checked before it.
"""

import importlib
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppl_gen.core import cli, memory
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]

FITS = [
    ["vae"],
    ["vae", "--guide", "flow"],
    ["vae", "--guide", "student-t"],
    ["vae", "--guide", "mixture"],
    ["vae", "--guide", "multivariate-normal"],
    ["vae", "--guide", "semi-amortized"],
    ["vae", "--guide", "grid", "--latent-dim", "1"],
    ["vae", "--prior", "vamp"],
    ["vae", "--prior", "flow"],
    ["vae", "--objective", "iwae"],
    ["vae", "--objective", "renyi"],
    ["hierarchical-belief-net"],
    ["hierarchical-vae"],
    ["mixture"],
    ["belief-net"],
    ["belief-net", "--guide", "bernoulli", "--objective", "vimco"],
    ["factor-analysis", "--binarization", "none"],
    ["gan"],
]
OTHERS = ("calibrate", "compare", "evaluate", "fill", "quality", "responsibilities", "sample", "splice", "sweep")
SMALL = ["--data", "digits", "--train-size", "60", "--dry-run"]
OWN_WORK = {"--out", "--resume", "--tensorboard", "--device", "--help"}  # files and devices have tests of their own


class Choice(NamedTuple):
    """An option of a command line."""

    command: str
    before: tuple[str, ...]
    flag: str
    hint: Any


def _options(hint: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The flags of a dataclass as tyro names them, with their types."""
    found = []
    cls = get_origin(hint) or hint
    arguments = dict(zip(getattr(cls, "__parameters__", ()), get_args(hint), strict=False))
    for each in fields(cls):
        kind = get_type_hints(cls, include_extras=True)[each.name]
        marks = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
        if "Positional" in str(marks) or "Fixed" in str(marks):  # a run or the model of a sweep; no option
            continue
        names = [mark.name for mark in marks if getattr(mark, "name", None) is not None]
        inner = get_args(kind)[0] if marks else kind
        inner = arguments.get(inner, inner)
        name = names[0] if names else each.name
        if is_dataclass(get_origin(inner) or inner):
            found += _options(inner, f"{prefix}{name}." if name else prefix)
        else:
            found.append((f"--{prefix}{name}".replace("_", "-"), inner))
    return found


def _declared(command: str, arguments: list[str]) -> list[Choice]:
    """The options that a command declares, from the dataclass that it gives to `cli.parse`."""
    seen: list[Any] = []

    def note(options: Any, *_: Any) -> Any:
        seen.append(options)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(cli, "parse", note)
        importlib.import_module(f"ppl_gen.{command}").command(arguments)
    options = [(flag, kind) for flag, kind in _options(seen[0]) if flag not in OWN_WORK]
    return [Choice(command, tuple(arguments), flag, kind) for flag, kind in options]


def _choices() -> list[Choice]:
    found = [choice for arguments in FITS for choice in _declared("fit", arguments)]
    return [*found, *(each for name in OTHERS for each in _declared(name, ["RUN"])), *_declared("calibrate", [])]


CHOICES = _choices()
WHOLE = st.one_of(
    st.sampled_from([-1, 0, 1, 2, 1100, 10**4, 10**6, 10**7, 2**31, 2**63, 10**10, 10**30, 10**400]), st.integers()
)
REAL = st.one_of(
    st.sampled_from(["inf", "-inf", "nan", "0", "-0.0", "1e-320", "1e-45", "1e30", "1e39", "1e308", "1e400", "-1"]),
    st.floats().map(str),
)
TEXT = st.one_of(st.sampled_from(["", " ", "nope", "a:b", "nope.py:X", "1", "é\n"]), st.text("abc.:/=,1", max_size=8))


def _words(hint: Any) -> st.SearchStrategy[list[str]]:
    """Words of a command line for a value of a type, and now and then of another type."""
    if get_origin(hint) is Annotated:
        return _words(get_args(hint)[0])
    kind, parts = get_origin(hint), [part for part in get_args(hint) if part is not type(None)]
    if kind in (Union, types.UnionType):
        return st.one_of([_words(part) for part in parts])
    if kind is Literal:
        return st.sampled_from([*map(str, parts), "nope"]).map(lambda word: [word])
    if kind is tuple:
        of = parts[0]
        if parts[-1] is Ellipsis:
            return st.lists(_words(of), max_size=3).map(lambda each: list(chain(*each)))
        return st.lists(_words(of), min_size=1, max_size=3).map(lambda each: list(chain(*each)))
    if hint is bool:
        return st.sampled_from([[], ["True"]])
    if hint is int:
        return WHOLE.map(lambda number: [str(number)])
    if hint is float:
        return REAL.map(lambda word: [word])
    return TEXT.map(lambda word: [word])


@st.composite
def command_lines(draw: Any, choices: list[Choice]) -> tuple[str, list[str]]:
    """A command, and its arguments with one option set."""
    chosen: Choice = draw(st.sampled_from(choices))
    return chosen.command, [*chosen.before, chosen.flag, *draw(_words(chosen.hint))]


class _Left(Exception):
    """The work that is left out begins."""


@pytest.fixture
def ends_well(call: Call, fitted: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str], bool], int]:
    """Run a command; assert that it ends as it should; return its status."""

    def begin(*_: Any, **__: Any) -> Any:
        raise _Left

    for name in ("evaluate", "split_gap", "calibrate", "sample", "fill", "splice", "explain", "quality_of"):
        monkeypatch.setattr(Run, name, begin)
    for module, name in (("evaluation.calibration", "calibrate"), ("sweep", "remaining"), ("comparison", "Comparison")):
        monkeypatch.setattr(importlib.import_module(f"ppl_gen.{module}"), name, begin)
    # What is drawn asks for gigabytes. No machine that runs this may give them.
    monkeypatch.setattr(memory, "free_memory", lambda device="cpu": 2**30)

    def run(command: str, arguments: list[str], real: bool) -> int:
        if command == "fit":
            arguments = [*arguments, *SMALL[:4], *(SMALL[4:] if "--dry-run" not in arguments else [])]
            if not real:
                monkeypatch.setattr(Run, "dry_run", begin)
        elif command == "sweep":
            arguments = ["vae", *arguments[1:], "--out", "sweep"]
        elif arguments[0] == "RUN":
            arguments = [str(fitted), *arguments[1:]]
        try:
            status, _, err = call(importlib.import_module(f"ppl_gen.{command}").command, *arguments)
        except _Left:
            return 0
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert status in (0, 1, 2) and len(errors) == (status != 0), (arguments, err)
        assert "Traceback" not in err and len(errors[0] if errors else "") < 1000, (arguments, err)
        return status

    return run


def test_every_command_and_class_has_its_options_here() -> None:
    flags = {(choice.command, choice.flag) for choice in CHOICES}
    assert {choice.command for choice in CHOICES} == {"fit", *OTHERS} and len(flags) > 120
    wanted = {"--learning-rate", "--guide.df", "--init-scale", "--guide.points", "--prior.num-bins", "--alpha"}
    assert wanted < {flag for command, flag in flags if command == "fit"}
    assert ("evaluate", "--annealed.num-chains") in flags and ("calibrate", "--repetitions") in flags


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(drawn=command_lines(CHOICES))
def test_a_value_is_taken_or_refused_in_one_line(
    drawn: tuple[str, list[str]], ends_well: Callable[..., int], elsewhere: Path
) -> None:
    ends_well(*drawn, False)


@pytest.mark.attack
@settings(max_examples=500, suppress_health_check=list(HealthCheck))
@given(drawn=command_lines([choice for choice in CHOICES if choice.command == "fit"]))
def test_a_pair_of_any_option_is_checked_or_refused_in_one_line(
    drawn: tuple[str, list[str]], ends_well: Callable[..., int], elsewhere: Path
) -> None:
    ends_well(*drawn, True)
