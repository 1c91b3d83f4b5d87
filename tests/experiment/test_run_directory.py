"""The files of a run: whole or not at all."""

import json
from pathlib import Path

import pytest
import torch
from fits import CONFIG, fit_pair
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_gen.core.errors import BadInput
from ppl_gen.data.splits import Data
from ppl_gen.experiment import run_directory as runs
from ppl_gen.experiment.run_directory import RunDirectory


def test_numbered_by_default(elsewhere: Path) -> None:
    paths = [RunDirectory.create(None, "vae-normal-digits", {}).path for _ in range(3)]
    assert [str(path) for path in paths] == [f"runs/vae-normal-digits-{n}" for n in (1, 2, 3)]
    assert not list(Path("runs").glob(".*"))


def test_opens_what_it_created(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "deep" / "run", "x", CONFIG | {"num_samples": 3})
    assert RunDirectory.open(run.path).config == {"format": runs.FORMAT} | CONFIG | {"num_samples": 3}
    assert run.read_json("evaluation.json") is None and run.load_checkpoint() is None


@settings(max_examples=25)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]),
)
def test_checkpoint_round_trip(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: torch.dtype
) -> None:
    run = RunDirectory.create(tmp_path_factory.mktemp("runs") / "run", "x", {})
    tensors = {f"t{i}": (torch.randn(shape) * 3).to(dtype) for i, shape in enumerate(shapes)}
    state = {"epoch": 1, "step": 3, "best": None, "text": "ü", "value": 0.1}
    run.save_checkpoint(tensors, state)
    loaded = run.load_checkpoint()
    assert loaded is not None and loaded[1] == state
    assert loaded[0].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[0][name].dtype == dtype and torch.equal(loaded[0][name], tensor)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty"])
def test_damaged_checkpoint(tmp_path: Path, damage: str) -> None:
    run = RunDirectory.create(tmp_path / "run", "x", {})
    run.save_checkpoint({"weight": torch.randn(100)}, {"epoch": 0, "step": 0})
    content = bytearray(run.checkpoint_path.read_bytes())
    if damage == "flipped":
        content[-50] ^= 1
    else:
        content = {"truncated": content[:-100], "text": bytearray(b"hello"), "empty": bytearray()}[damage]
    run.checkpoint_path.write_bytes(content)
    with pytest.raises(BadInput, match="damaged"):
        run.load_checkpoint()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "damaged"),
        ("{}", "damaged"),
        ('{"format": "x"}', "damaged"),
        ('{"format": 99}', "later version"),
        (json.dumps({"format": 1} | CONFIG | {"training": {"optimizer": "a\nb"}}), "optimizer a b: choose from"),
        (json.dumps({"format": 1} | CONFIG | {"num_samples": 1.5}), "num_samples 1.5: must be a whole number"),
        ("[]", "damaged"),
    ],
)
def test_not_a_run(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(BadInput, match="no such run"):
        RunDirectory.open(tmp_path / "none")
    with pytest.raises(BadInput, match="not a run directory"):
        RunDirectory.open(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadInput, match=words):
        RunDirectory.open(tmp_path)


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create(tmp_path / "run", "x", {})
    run.save_checkpoint({"weight": torch.ones(3)}, {"epoch": 0, "step": 1})
    run.write_json("fill.json", {"a": 1})

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "fsync", full)
        for write in (
            lambda: run.save_checkpoint({"weight": torch.zeros(3)}, {"epoch": 0, "step": 2}),
            lambda: run.write_json("fill.json", {"a": 2}),
            lambda: run.append_metrics({"step": 0}),
        ):
            with pytest.raises(BadInput, match="No space left on device"):
                write()
        with pytest.raises(BadInput, match="No space left on device"):
            RunDirectory.create(tmp_path / "other", "x", {})
    loaded = run.load_checkpoint()
    assert loaded is not None and loaded[1] == {"epoch": 0, "step": 1} and loaded[0]["weight"].sum() == 3
    assert run.read_json("fill.json") == {"a": 1}
    (run.path / "fill.json").write_text("[1]")
    with pytest.raises(BadInput, match="damaged"):
        run.read_json("fill.json")
    run.write_json("fill.json", {"a": 1})
    assert not (tmp_path / "other").exists()
    assert sorted(path.name for path in run.path.iterdir()) == sorted(
        ["checkpoint.safetensors", "config.json", "fill.json", "metrics.jsonl"]
    )


def test_write_file_is_all_or_nothing(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "x", {})

    def half(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run.write_file("figures/a.png", half)
    assert list((run.path / "figures").iterdir()) == []
    run.write_file("figures/a.png", lambda path: path.write_text("whole"))
    assert [path.name for path in (run.path / "figures").iterdir()] == ["a.png"]


def test_no_tensor_file_can_run_code() -> None:
    """Nothing in the package unpickles."""
    files = list(Path(runs.__file__).parents[1].rglob("*.py"))
    assert len({path.parent for path in files}) > 10
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "torch.load(" not in text and "pickle.load" not in text and "allow_pickle=True" not in text, path


def test_config_is_readable_json(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "x", {"a": (1, 2)})
    assert json.loads((run.path / "config.json").read_text(encoding="utf-8"))["a"] == [1, 2]


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path, data: Data) -> None:
    whole, _ = fit_pair(tmp_path / "whole", data)
    content = whole.load_checkpoint()
    cut = RunDirectory.create(tmp_path / "partial", "run", {})
    # As after a kill between the metrics and the checkpoint of the last epoch, in the middle of a line.
    lines = whole.metrics()
    for line in lines:
        cut.append_metrics(line)
    with open(cut.path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "st')
    assert len(cut.metrics()) == len(lines)
    cut.cut_metrics(lines[1]["step"])
    assert cut.metrics() == lines[:2]
    assert content is not None and content[1]["epoch"] == 3


def test_metrics_hold_no_nan(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "run", {"x": float("nan")})
    run.append_metrics({"step": 0, "elbo": float("inf")})
    for name in ("config.json", "metrics.jsonl"):
        json.loads((run.path / name).read_text(encoding="utf-8"), parse_constant=lambda text: pytest.fail(text))


def test_a_relative_path_holds_after_a_change_of_directory(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"epoch": 0, "step": 1, "seconds": 0.1, "learning_rate": 0.1, "train": {"elbo": -1.0}}
    run = RunDirectory.create(Path("run"), "x", {"seed": 3})
    run.append_metrics(line)
    assert str(run.path) == "run"
    (elsewhere / "deeper").mkdir()
    monkeypatch.chdir("deeper")
    assert run.path == elsewhere / "run" and run.metrics() == [line]
    run.write_json("fill.json", {"a": 1})
    assert not list(Path().iterdir()) and run.read_json("fill.json") == {"a": 1}
