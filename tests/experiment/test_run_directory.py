"""The files of a run: whole or not at all."""

import base64
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from fits import CONFIG, fit_pair
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_gen.core.errors import BadInput
from ppl_gen.data.splits import Data
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.experiment import contents
from ppl_gen.experiment import run_directory as runs
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.report.run_page import gallery, report


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


def test_write_file_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory.create(tmp_path / "run", "x", {})

    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "fsync", killed)
        with pytest.raises(RuntimeError):
            run.write_file("figures/a.png", b"half")
    assert list((run.path / "figures").iterdir()) == []
    run.write_file("figures/a.png", b"whole")
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


def test_the_last_line_is_found_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison of many long runs parses one line of each; the line that was cut off is tried, too."""
    run, parsed = RunDirectory.create(tmp_path / "run", "run", {}), list[bytes]()
    lines = [{"epoch": n, "step": n, "seconds": 0.0, "learning_rate": 0.1, "train": {}} for n in range(9)]
    (run.path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"epoch": 9, "st')
    read = contents.read
    monkeypatch.setattr(contents, "read", lambda text, file: (parsed.append(text), read(text, file))[1])
    assert run.last == lines[-1] == run.metrics()[-1] and len(parsed) == 2 + 10


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


def plant(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(Path("private").absolute())


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "evaluation.json", "evaluation.nc"])
def test_no_file_of_a_run_is_read_through_a_link(elsewhere: Path, fitted: Path, kind: str, name: str) -> None:
    """One line says so, also for a pipe, which would be waited for."""
    shutil.copytree(fitted, "run")
    Path("private").write_bytes((fitted / name).read_bytes() if (fitted / name).exists() else b"{}")
    plant(Path("run") / name, kind)
    with pytest.raises(BadInput, match=rf"run/{name}: .*(is a link|is not a regular file)"):
        run = RunDirectory.open("run")
        Evaluation.read(run)
        report(run)


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", ["gaps.json", "explorer.json"])
def test_a_link_in_place_of_a_further_result_is_left_out(
    elsewhere: Path, fitted: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(fitted, "run")
    Path("private").write_bytes(b"{}")
    plant(Path("run") / name, kind)
    report(RunDirectory.open("run"))
    assert re.fullmatch(rf"warning: run/{name}: .*(is a link|is not a regular file).*\n", capsys.readouterr().err)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_no_checkpoint_is_read_through_a_link(elsewhere: Path, fitted: Path, kind: str) -> None:
    shutil.copytree(fitted, "run")
    Path("private").write_bytes((fitted / "checkpoint.safetensors").read_bytes())
    plant(Path("run/checkpoint.safetensors"), kind)
    run = RunDirectory.open("run")
    with pytest.raises(BadInput, match=r"run/checkpoint.safetensors: (is a link|is not a regular file)"):
        run.load_checkpoint()
    assert run.step() is None
    plant(Path("run/posteriors.npz"), kind)
    assert run.arrays("posteriors.npz") == {}


@pytest.mark.parametrize("kind", ["link", "pipe", "text", "folder"])
def test_only_pictures_of_the_run_are_in_its_page(
    elsewhere: Path, fitted: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(fitted, "run")
    picture, count = Path("run/figures/samples.png"), len(gallery(RunDirectory.open("run")))
    Path("private").write_bytes(b"secret of another" if kind == "text" else picture.read_bytes())
    if kind == "text":
        shutil.copy("private", picture)
    elif kind == "folder":
        shutil.move("run/figures", "elsewhere")
        Path("run/figures").symlink_to("../elsewhere")
    else:
        plant(picture, kind)
    page, err = report(RunDirectory.open("run")), capsys.readouterr().err
    secret = base64.b64encode(Path("private").read_bytes()).decode()
    assert secret not in page and page.count("<img") == (0 if kind == "folder" else count - 1)
    if kind != "folder":
        assert err.startswith("warning: run/figures/samples.png is left out of the page: ") and err.count("\n") == 1


def test_nothing_is_written_through_a_link(elsewhere: Path, fitted: Path) -> None:
    """Neither to a file, nor into a folder."""
    shutil.copytree(fitted, "run")
    run = RunDirectory.open("run")
    Path("private").write_bytes(b"secret")
    for name in ("metrics.jsonl", "evaluation.json", "figures/samples.png", ".evaluation.json.tmp.json"):
        plant(Path("run", name), "link")
    with pytest.raises(BadInput, match=r"run/metrics.jsonl: is a link"):
        run.append_metrics({"step": 1})
    run.write_json("evaluation.json", {"a": 1})
    run.write_file("figures/samples.png", b"new")
    shutil.move("run/figures", "elsewhere")
    Path("run/figures").symlink_to("../elsewhere")
    before = sorted(path.name for path in Path("elsewhere").iterdir())
    with pytest.raises(BadInput, match=r"run/figures: is a link"):
        run.write_file("figures/more.png", b"new")
    assert Path("private").read_bytes() == b"secret" and Path("run/evaluation.json").is_file()
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == before


def test_a_run_may_be_named_by_a_link(elsewhere: Path, fitted: Path) -> None:
    shutil.copytree(fitted, "there")
    Path("run").symlink_to("there")
    run = RunDirectory.open("run")
    with run.writing():
        run.write_json("gaps.json", {"a": 1})
        run.write_file("figures/more.png", b"new")
    assert Path("there/gaps.json").is_file() and Path("there/figures/more.png").is_file() and Path("run").is_symlink()


def test_two_new_runs_at_once_get_numbers_of_their_own(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes a directory between the choice of its name and the renaming."""
    rename = os.rename

    def late(scratch: Path, path: Path) -> None:
        if path.name == "vae-1":
            path.mkdir()
            (path / "config.json").write_text("{}")
        rename(scratch, path)

    monkeypatch.setattr(runs.os, "rename", late)
    assert str(RunDirectory.create(None, "vae", {}).path) == "runs/vae-2"
    with pytest.raises(BadInput, match=r"out there/vae-1: exists already"):
        RunDirectory.create(Path("there/vae-1"), "vae", {})
    assert sorted(map(str, Path().glob("*/*"))) == ["runs/vae-1", "runs/vae-2", "there/vae-1"]


def test_what_a_killed_process_has_left_beside_its_run(elsewhere: Path) -> None:
    """Is cleared by the next one, if it is old, and has the name that only this package gives."""
    names = [".1-0123abcd.tmp", ".2-0123abcd.tmp", ".mine-0123abcd.tmp"]
    for name in names:
        Path(name).mkdir()
        Path(name, "config.json").write_text("{}")
        if name != names[1]:
            os.utime(name, (0, 0))
    RunDirectory.create(Path("run"), "run", {})
    assert sorted(path.name for path in Path().iterdir()) == [*names[1:], "run"]
