"""Run directories that were damaged, or made to do harm: one line, or a warning, and never a traceback.

Each directory is a small run with a mutation of one of its files. Every reader of runs reads it, and some of them are
evaluated and resumed as well.
"""

import copy
import gc
import io
import json
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch
from written import RESULTS

import ppl_gen
from ppl_gen import fit
from ppl_gen.comparison import Comparison
from ppl_gen.core.errors import BadInput, Failed
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.experiment.run_directory import GROUP, RunDirectory
from ppl_gen.report.run_page import report
from ppl_gen.run import Run

FEW, MANY = 20, 40
"""Directories of the first seed, and of each other one."""
ALL = 10
"""One directory of so many is evaluated and resumed, too. With another seed each is."""
VALUES: list[Any] = [None, True, "30", "", 0, -1, 0.5, 128.5, 1e308, 10**400, 2**40, [], [None], {}, {"mean": 1}]
VALUES += ["x" * 300, "a\nb", "Infinity"]
RAW = {"deep": "[" * 5000 + "]" * 5000, "nested": '{"a":' * 200 + "1" + "}" * 200, "nan": "NaN", "long": "9" * 5000}
"""Texts that `json.dumps` does not write."""


@pytest.fixture(scope="module")
def whole(fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every file that is read."""
    run = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(fitted, run)
    for name, content in RESULTS.items():
        (run / name).write_text(json.dumps(content))
    assert {"explorer.json", "posteriors.npz", "samples.npz"} <= {path.name for path in run.iterdir()}
    return run


# Mutations -----------------------------------------------------------------------------------------------------


def _places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in content; of lists the first two."""
    yield path
    inner = (
        content.items() if isinstance(content, dict) else enumerate(content[:2]) if isinstance(content, list) else ()
    )
    for key, value in inner:
        yield from _places(value, (*path, key))


def mutated(rng: random.Random, content: Any) -> tuple[str, str]:
    """JSON with one value replaced or deleted, and what was done."""
    path, value = rng.choice(list(_places(content))), rng.choice([*VALUES, *RAW, "delete"])
    what = f"{'.'.join(map(str, path))} = {str(value)[:20]!r}"
    if not path:
        return RAW.get(value, "") if isinstance(value, str) else json.dumps(value), what
    content = copy.deepcopy(content)
    *folders, last = path
    place = content
    for folder in folders:
        place = place[folder]
    if value == "delete":
        del place[last]
        return json.dumps(content), what
    raw = RAW.get(value) if isinstance(value, str) else None
    place[last] = "\x1a" if raw else value
    return json.dumps(content).replace('"\\u001a"', raw or ""), what


def _json(rng: random.Random, file: Path) -> str:
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    which = rng.randrange(len(lines))
    lines[which], what = mutated(rng, json.loads(lines[which]))
    file.write_text("\n".join(lines) + "\n" * (file.suffix == ".jsonl"))
    return what


def _arrays(rng: random.Random, file: Path) -> str:
    with np.load(file) as found:
        arrays = dict(found)
    name = rng.choice(sorted(arrays))
    values, change = arrays.pop(name), rng.choice(sorted(ARRAYS))
    made = ARRAYS[change](values)
    np.savez_compressed(file, **arrays | ({} if made is None else {name: made}))  # type: ignore[arg-type]
    if change == "huge":  # a header alone, which announces 800 GB
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (10**11,)})
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(f"{name}.npy", head.getvalue())
    return f"{name} {change}"


ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "nan": lambda values: np.full(values.shape, np.nan),
    "flat": lambda values: values.reshape(-1)[:7],
    "object": lambda values: np.array([{}, print], dtype=object),
    "text": lambda values: np.full(values.shape, "a"),
    "complex": lambda values: values.astype(complex),
    "empty": lambda values: values.reshape(-1)[:0],
    "large": lambda values: values * 1e300,
    "zero": lambda values: values * 0,
    "none": lambda values: None,
    "huge": lambda values: None,
}


def _variables(rng: random.Random, file: Path) -> str:
    with h5py.File(file, "r+") as content:
        group = content[GROUP]
        name, change = (
            rng.choice(sorted(group)),
            rng.choice(["none", "nan", "shape", "text", "int", "huge", "attribute"]),
        )
        shape = group[name].shape
        if change == "attribute":
            name = rng.choice(sorted(group.attrs))
            group.attrs[name] = rng.choice([[1, 2], "x", 7])
            return f"{name} {change}"
        del group[name]
        made = {"nan": np.full(shape, np.nan), "shape": np.zeros((2, 3)), "text": np.full(shape, b"a")}
        if change == "huge":
            group.create_dataset(name, shape=(10**12,), dtype="f8", chunks=(1000,))
        elif change != "none":
            group[name] = made.get(change, np.zeros(shape, int))
    return f"{name} {change}"


def _tensors(rng: random.Random, file: Path) -> str:
    run = RunDirectory(file.parent, {})
    found = run.load_checkpoint()
    assert found is not None
    tensors, state = found
    if rng.random() < 0.5:
        text, what = mutated(rng, state)
        with patch("ppl_gen.experiment.run_directory.json.dumps", lambda _: text):
            run.save_checkpoint(tensors, state)
        return f"state {what}"
    name, change = rng.choice(sorted(tensors)), rng.choice(sorted(TENSORS))
    made = TENSORS[change](tensors.pop(name))
    run.save_checkpoint(tensors | ({"adam.77.exp_avg": torch.zeros(3)} if made is None else {name: made}), state)
    return f"{name} {change}"


TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "double": lambda values: values.double(),
    "integer": lambda values: values.long(),
    "float8": lambda values: values.float().to(torch.float8_e4m3fn),
    "complex": lambda values: values.to(torch.complex64),
    "nan": lambda values: values.float() * torch.nan,
    "short": lambda values: values.reshape(-1)[:3],
    "long": lambda values: torch.zeros(5000),
    "other": lambda values: None,
}


def _bytes(rng: random.Random, file: Path) -> str:
    content, change = (
        bytearray(file.read_bytes()),
        rng.choice(["cut", "bits", "zeros", "text", "empty", "none", "folder"]),
    )
    at = rng.randrange(len(content))
    if change == "bits":
        for _ in range(rng.choice([1, 8, 64])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    made = {"cut": content[:at], "zeros": content[:at] + bytes(64) + content[at + 64 :], "text": b"hello", "empty": b""}
    file.unlink()
    if change == "folder":
        file.mkdir()
    elif change != "none":
        file.write_bytes(made.get(change, content))
    return f"{change}"


MUTATIONS = {".json": _json, ".jsonl": _json, ".npz": _arrays, ".nc": _variables, ".safetensors": _tensors}


def mutate(rng: random.Random, run: Path) -> tuple[str, str]:
    """Change a file of a run. Returns its name, and what was done."""
    name = rng.choice(sorted(path.name for path in run.iterdir() if path.suffix in MUTATIONS))
    change = _bytes if rng.random() < 0.2 else MUTATIONS[Path(name).suffix]
    return name, change(rng, run / name)


# What is done with a run ---------------------------------------------------------------------------------------


def _compare(run: Path) -> None:
    comparison = Comparison([run])
    str(comparison), comparison.to_markdown(), comparison.to_csv(), comparison.frame, comparison._repr_html_()


def _page(run: Path) -> None:
    Comparison([run]).page()


def _evaluation(run: Path) -> None:
    found = Run.open(run).evaluation
    if found is not None:
        str(found), repr(found), found._repr_html_(), found.iwae
        if found.images is not None:
            found.estimates, found.to_dataframe()


def _library(run: Path) -> None:
    opened = Run.open(run)
    opened.config, opened.metrics, opened.figures, opened._repr_html_(), repr(opened)


READERS: tuple[Callable[[Path], Any], ...] = (
    _compare,
    _evaluation,
    _library,
    lambda run: report(RunDirectory.open(run)),
    lambda run: ppl_gen.load(run),
)
USERS: tuple[Callable[[Path], Any], ...] = (
    _page,
    lambda run: Run.open(run).sample(num_images=4),
    lambda run: Run.open(run).fill(num_images=2, num_samples=3, quiet=True),
    lambda run: Run.open(run).resume(quiet=True),
    lambda run: Run.open(run).evaluate(num_images=20, num_samples=12, quiet=True),
)


def _refused(act: Callable[[Path], Any], run: Path) -> bool:
    """Do something with a run. Returns True if it was refused in a line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, on numbers as large as they can be
            act(run)
    except (BadInput, Failed) as error:
        assert "\n" not in error.sentence and len(error.sentence) < 1000, error.sentence
        return True
    return False


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.attack) for seed in range(1, 13))])
def test_no_run_directory_is_a_traceback(whole: Path, tmp_path: Path, seed: int) -> None:
    """Of 500 directories with all seeds. What can be made again is whole after it was made again."""
    rng, refused, count = random.Random(seed), 0, MANY if seed else FEW
    for number in range(count):
        run = tmp_path / str(number)
        shutil.copytree(whole, run)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, on values that do not fit a type
            name, what = mutate(rng, run)
        try:
            found = [_refused(act, run) for act in READERS]
            if name == "posteriors.npz":
                found.append(_refused(_page, run))
            if seed or number % ALL == 0:
                found += [_refused(act, run) for act in USERS]
                if name not in ("config.json", "checkpoint.safetensors") and (run / name).is_file():
                    assert not found[-1], "cannot be evaluated"
                    assert not _refused(_compare, run), "is not whole after its evaluation"
        except Exception as error:
            raise AssertionError(f"directory {number}: {name}: {what}") from error
        refused += any(found)
        shutil.rmtree(run)
    assert count / 10 < refused < count, refused


@pytest.mark.parametrize("damage", ["{}", "cut", "none"])
def test_a_finished_run_makes_its_evaluation_again(whole: Path, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    values = run / "evaluation.nc"
    if damage == "cut":
        values.write_bytes(values.read_bytes()[:-1000])
    elif damage == "none":
        values.unlink()
    else:
        (run / "evaluation.json").write_text(damage)
    with patch("ppl_gen.run.write_report"), patch("ppl_gen.report.pictures.draw_training"):
        evaluation = Run.open(run).resume(quiet=True).evaluation
    assert evaluation is not None and evaluation.images is not None
    assert Comparison([run]).rows[0].elbo.mean == pytest.approx(evaluation.elbo.mean)


def test_a_state_that_is_too_short_is_not_trained_on(
    whole: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    directory = RunDirectory(run, {})
    found = directory.load_checkpoint()
    assert found is not None
    directory.save_checkpoint(found[0] | {"adam.0.exp_avg": torch.zeros(3)}, found[1])
    status, _, err = call(fit.command, "--resume", str(run), "--epochs", "3")
    *_, line = err.splitlines()
    assert status == 2 and line.startswith("error: ") and "checkpoint.safetensors" in line, err
    assert "'adam.0.exp_avg', which has the shape [3], not [4, 2]" in line, err


def test_an_evaluation_that_cannot_be_opened_prints_nothing(whole: Path, tmp_path: Path) -> None:
    """Neither when it is read, nor when what was read of it is deleted: pytest fails for an exception there."""
    run, rng, refused = tmp_path / "run", random.Random(0), 0
    shutil.copytree(whole, run)
    content = (whole / "evaluation.nc").read_bytes()
    for _ in range(40):
        changed = bytearray(content)
        for _ in range(8):
            changed[rng.randrange(3000)] = rng.randrange(256)
        (run / "evaluation.nc").write_bytes(changed)
        refused += _refused(lambda run: Evaluation.read(RunDirectory.open(run)), run)
    gc.collect()
    assert refused > 20
