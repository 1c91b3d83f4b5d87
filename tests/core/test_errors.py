"""Errors: sentences of options for a command and of arguments for Python, names that were meant, and user code."""

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from ppl_gen.core import commands, errors
from ppl_gen.core.errors import (
    BadInput,
    Failed,
    as_bad_input,
    begun,
    describe,
    kept,
    near_miss,
    require,
    require_choices,
    require_number,
    require_numbers,
    users_frame,
)


@pytest.mark.parametrize(
    ("sentence", "in_python"),
    [
        ("--num-samples 0: must be at least 1", "num_samples 0: must be at least 1"),
        ("--guide.input-dropout 1: too much", "guide.input_dropout 1: too much"),
        ("--refit-guide: needs --init-from", "fixed_model: needs init_from"),
        ("continue with --resume runs/a", "continue with Run.open('runs/a').resume()"),
        (
            "has none; train it with --resume 'my runs/a'; or not",
            "has none; train it with Run.open('my runs/a').resume(); or not",
        ),
        ("a--b - and -- stay", "a--b - and -- stay"),
        ("my--run/--more: --seed 1: too much", "my--run/--more: seed 1: too much"),
        ("no sites\nTrace Shapes:\n Param Sites:", "no sites"),
    ],
)
def test_a_sentence_speaks_of_arguments_in_python(sentence: str, in_python: str) -> None:
    for kind in (BadInput, Failed):
        error = kind(sentence)
        assert str(error) == in_python and error.sentence == sentence.partition("\n")[0]


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("epoch", ["seed", "epochs"], "; did you mean 'epochs'?"),
        ("lr", ["learning_rate", "seed"], "; did you mean 'learning_rate'?"),
        ("z-dim", ["latent_dim"], "; did you mean 'latent_dim'?"),
        ("lr", ["seed", "epochs"], "; known: epochs, seed"),  # an alias of what is not there
        ("x", ["b", "a"], "; known: a, b"),
    ],
)
def test_names_that_were_meant(name: str, known: list[str], hint: str) -> None:
    assert near_miss(name, known) == hint


def test_rules() -> None:
    @dataclass
    class Options:
        split: Literal["test", "train"]

    require(True, "num_samples", 1, "must be at least 1")
    with pytest.raises(BadInput) as error:
        require(False, "num_samples", 0, "must be at least 1")
    assert error.value.sentence == "--num-samples 0: must be at least 1"
    require_choices(Options("train"))
    with pytest.raises(BadInput) as error:
        require_choices(Options("half"), "evaluate.")  # type: ignore[arg-type]
    assert error.value.sentence == "--evaluate.split half: choose from test, train"


def test_least_values() -> None:
    """A seed is checked where there is one. None stands for a default."""

    @dataclass
    class Options:
        num_images: int | None = None
        seed: int = 0

    require_numbers(Options(), num_images=1)
    for options, sentence in (
        (Options(0), "--fill.num-images 0: must be at least 1"),
        (Options(1, -1), "--fill.seed -1: must be at least 0 and below 2^63"),
    ):
        with pytest.raises(BadInput) as error:
            require_numbers(options, "fill.", num_images=1)
        assert error.value.sentence == sentence


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (10**7, None),
        (10**7 + 1, "10000001: must be at most 10000000"),
        (-(10**400), "-10^400: must be at most 10000000"),
        (math.nan, "nan: must be a finite number"),
        (-math.inf, "-inf: must be a finite number"),
        (1e-320, "1e-320: must be 0, or between 1e-30 and 1e30 in size"),
        (1e39, "1e+39: must be 0, or between 1e-30 and 1e30 in size"),
        (0.0, None),
        (-1e30, None),
        ((3, 10**8), "100000000: must be at most 10000000"),
        (True, None),
        (None, None),
        ("inf", None),
    ],
)
def test_numbers_that_no_option_can_have(value: object, rule: str | None) -> None:
    found = None
    try:
        require_number("guide.df", value)
    except BadInput as error:
        found = error.sentence.removeprefix("--guide.df ")
    assert found == rule


def test_errors_of_memory_pass() -> None:
    """They are no fault of the code in which they occur."""
    for raised in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")):
        with pytest.raises(type(raised)), as_bad_input("guide Mine"):
            raise raised


def test_errors_of_user_code() -> None:
    """Name the line that is at fault; what is bad input already stays as it is."""

    def fails() -> None:
        raise KeyError("width")

    with pytest.raises(BadInput) as error, as_bad_input("guide Mine"):
        fails()
    assert error.value.sentence.startswith("guide Mine: KeyError: 'width' (")
    line = fails.__code__.co_firstlineno + 1
    assert error.value.sentence.endswith(f"test_errors.py:{line}, in fails)")
    assert isinstance(error.value.__cause__, KeyError)
    with pytest.raises(BadInput, match=r"^as it is$"), as_bad_input("guide Mine"):
        raise BadInput("as it is")
    with pytest.raises(KeyboardInterrupt), as_bad_input("guide Mine"):
        raise KeyboardInterrupt
    assert describe(ValueError()) == "ValueError"
    assert describe(ValueError("Shape mismatch inside plate('data')\nmore")).endswith(
        "make a vector per image one event: .to_event(1)"
    )


class Unsaid(Exception):
    def __str__(self) -> str:
        raise ValueError


def test_an_error_in_one_line() -> None:
    """Whatever its text is: the first line; or the second too, if the first announces it."""
    many = ExceptionGroup("several", [KeyError("a"), ValueError("b")])
    for error, line in (
        (ValueError("one\n two\nthree"), "ValueError: one"),
        (ValueError("wrong:\n\tthe   width\nmore"), "ValueError: wrong: the width"),
        (Unsaid(), "Unsaid"),
        (many, "ExceptionGroup: several (2 sub-exceptions); the first is KeyError: 'a'"),
        (SystemExit(0), "SystemExit: 0"),
    ):
        assert describe(error) == line


def test_whose_code_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost frame outside this package, Python and installed libraries. A class of an installed package that
    the user has named is the user's; another folder may be declared not to be."""

    def called(function: Callable[[], object]) -> BaseException:
        try:
            function()
        except BaseException as error:
            return error
        raise AssertionError

    error = called(lambda: json.loads("{"))
    frame = users_frame(error)
    assert frame is not None and (frame.filename, frame.name) == (__file__, "<lambda>")
    assert users_frame(error, f"{Path(__file__).parent}/") is None
    installed = compile("def fails(): raise KeyError", "/somewhere/site-packages/theirs/guides.py", "exec")
    names: dict[str, Any] = {}
    exec(installed, names)
    for named, found in ((set(), "<lambda>"), ({"/somewhere/site-packages/theirs/guides.py"}, "fails")):
        monkeypatch.setattr(errors, "named_files", named)
        frame = users_frame(called(lambda: names["fails"]()))
        assert frame is not None and frame.name == found


def test_work_that_was_begun() -> None:
    """Is noted on an exception of a user's code, and on bad input that came of one; not on any other."""

    def fails(error: BaseException) -> None:
        raise error

    for error, noted in (
        (ValueError(), ["kept here"]),
        (SystemExit(), ["kept here"]),
        (KeyboardInterrupt(), []),
        (BadInput("--epochs 0"), []),
        (Failed("diverged"), []),
    ):
        with pytest.raises(type(error)) as raised, begun("kept here"):
            fails(error)
        assert kept(raised.value) == noted
    with pytest.raises(BadInput) as refused, begun("kept here"), as_bad_input("objective"):
        fails(KeyError())
    assert kept(refused.value) == ["kept here"]


@pytest.mark.parametrize(
    "path", ["runs/a", "my runs/it's $HOME;x", 'a"b', "a--seed 1", "-x", "ä  b", "a\\b", "*", "a,b;"]
)
def test_a_run_in_a_sentence(path: str) -> None:
    """The line can be pasted, into a shell or into Python."""
    told = BadInput(f"has no checkpoint; train it with {commands.line(['--resume', path])}; or delete it")
    assert shlex.split(told.sentence.removesuffix("; or delete it"))[-1] == path
    assert str(told) == f"has no checkpoint; train it with Run.open({path!r}).resume(); or delete it"
