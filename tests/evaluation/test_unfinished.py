"""An evaluation that is interrupted goes on where it stopped, to the same numbers."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fits import FEW
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.experiment.run_directory import UNFINISHED, RunDirectory
from ppl_gen.inference import gathering
from ppl_gen.inference.importance import log_marginal_likelihood, log_weights
from ppl_gen.run import Run

QUICK = {"num_temperatures": 4, "leapfrog_steps": 1, "num_chains": 2}
KINDS: dict[str, dict[str, Any]] = {
    "importance": {"estimator": "importance", "num_samples": 60},
    "settled": {"estimator": "importance", "num_samples": "auto", "settling": {"most_samples": 256}, "num_images": 100},
    "mixed": {"estimator": "importance", "num_samples": 60, "prior_share": 0.5},
    "annealed": {"estimator": "annealed", "annealed": QUICK, "num_samples": 60, "sandwich": 30},
}


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Run:
    return Run.open(shutil.copytree(fitted, tmp_path / "run"))


def interrupt_at(block: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ctrl-C when a block of images is computed, and not yet kept. The list has a number for each computed block."""
    states, computed = gathering.random_states, list[int]()

    def counting(gpu: bool) -> Any:
        computed.append(len(computed))
        if len(computed) == block:
            raise KeyboardInterrupt
        return states(gpu)

    monkeypatch.setattr(gathering, "random_states", counting)
    return computed


def without_seconds(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    return {key: without_seconds(value) for key, value in content.items() if key != "seconds"}


def same(one: Evaluation, other: Evaluation) -> bool:
    values = [each.to_xarray().drop_attrs() for each in (one, other)]
    return without_seconds(one.summary) == without_seconds(other.summary) and values[0].identical(values[1])


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_to_the_same_numbers(kind: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the second, in the last and in a middle block, and twice."""
    options = KINDS[kind] | {"quiet": True}
    with monkeypatch.context() as patched:
        computed = interrupt_at(0, patched)
        whole = run.evaluate(**options)
        blocks = len(computed)
    assert blocks > 5 and not (run.path / UNFINISHED).exists()
    for stops in ([2], [blocks], [blocks // 2, blocks // 3]):
        for stop in stops:
            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                interrupt_at(stop, patched)
                run.evaluate(**options)
        with monkeypatch.context() as patched:
            computed = interrupt_at(0, patched)
            assert same(run.evaluate(**options), whole)
        assert len(computed) == blocks - sum(stop - 1 for stop in stops)


def test_an_estimator_of_ones_own_begins_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls are its own: the second time it may make others."""
    stops = False

    def mine(model: Any, guide: Any, x: Tensor, num_samples: int) -> Tensor:
        log_w = log_weights(model, guide, x, num_samples=10) + 0 * log_marginal_likelihood(model, guide, x).log_px
        if stops:
            raise KeyboardInterrupt
        return log_w

    options = {"estimator": ["importance", mine], "num_samples": 60, "quiet": True}
    whole = run.evaluate(**options)
    stops = True
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(**options)
    assert (run.path / UNFINISHED).exists()
    stops, computed = False, interrupt_at(0, monkeypatch)
    assert same(run.evaluate(**options), whole) and not computed


def test_another_evaluation_begins_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another option, with other weights, and if the file is damaged."""
    whole = run.evaluate(num_samples=40, quiet=True)

    def interrupted() -> None:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            interrupt_at(3, patched)
            run.evaluate(num_samples=50, quiet=True)

    interrupted()
    assert same(run.evaluate(num_samples=40), whole) and not (run.path / UNFINISHED).exists()
    interrupted()
    run.resume(epochs=2, quiet=True)
    interrupted()
    content = (run.path / UNFINISHED).read_bytes()
    (run.path / UNFINISHED).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    capsys.readouterr()
    found = run.evaluate(num_samples=50)
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1 and f"{UNFINISHED}: damaged" in err and "goes on" not in err
    assert same(run.evaluate(num_samples=50, quiet=True), found)


def test_it_is_saved_each_minute_and_says_that_it_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a killed process leaves is enough; the time of both parts counts."""
    monkeypatch.setattr(gathering, "_EVERY", 0.0)
    kept = Path()

    def note(self: gathering.Kept) -> None:
        nonlocal kept
        self.save()
        if not kept.name and self._calls[0].done > 100:
            kept = Path(shutil.copy(run.path / UNFINISHED, run.path.parent / "kept"))

    with monkeypatch.context() as patched:
        patched.setattr(gathering.Kept, "note", note)
        whole = run.evaluate(num_samples=70, quiet=True)
    shutil.copy(kept, run.path / UNFINISHED)
    capsys.readouterr()
    assert same(run.evaluate(num_samples=70), whole)
    err = capsys.readouterr().err
    assert re.search(r"^goes on with an evaluation that was interrupted after \d+ s$", err, re.MULTILINE)


def test_the_evaluation_of_a_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = FEW | {"data": "digits", "train_size": 60, "latent_dim": 5}
    whole = Run.fit("vae", out=tmp_path / "whole", **few).evaluation
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupt_at(2, patched)
        Run.fit("vae", out=tmp_path / "run", **few)
    run = Run.open(tmp_path / "run")
    assert (run.path / UNFINISHED).exists() and run.evaluation is None
    computed = interrupt_at(0, monkeypatch)
    run.resume(quiet=True)
    assert whole is not None and run.evaluation is not None and same(run.evaluation, whole) and computed


def test_many_images_lie_in_files_that_are_written_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 8 images here. An evaluation goes on from them to the same numbers, and begins anew if one of them is missing
    or of another evaluation."""
    monkeypatch.setattr(gathering, "_BLOCK", 8)

    def interrupted(block: int, **options: Any) -> list[str]:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            interrupt_at(block, patched)
            run.evaluate(num_samples=60, quiet=True, **options)
        return sorted(path.name for path in run.path.glob(f"{UNFINISHED}*"))

    with monkeypatch.context() as patched:
        computed = interrupt_at(0, patched)
        whole = run.evaluate(num_samples=60, quiet=True)
        blocks = len(computed)
    found = interrupted(blocks)
    assert len(found) > 4 and found[:2] == [UNFINISHED, f"{UNFINISHED}-0-0"]
    before = [(run.path / name).stat().st_mtime_ns for name in found[1:]]
    assert interrupted(1) == found
    assert [(run.path / name).stat().st_mtime_ns for name in found[1:]] == before
    with monkeypatch.context() as patched:
        computed = interrupt_at(0, patched)
        assert same(run.evaluate(num_samples=60, quiet=True), whole) and len(computed) == 1
    assert not list(run.path.glob(f"{UNFINISHED}*"))
    mine = run.path / f"{UNFINISHED}ial-notes"

    def begins_anew(sentence: str) -> bool:
        capsys.readouterr()
        with monkeypatch.context() as patched:
            computed = interrupt_at(0, patched)
            again = run.evaluate(num_samples=60, quiet=True)
        err = capsys.readouterr().err
        return same(again, whole) and len(computed) == blocks and err.count("warning: ") == 1 and sentence in err

    (run.path / interrupted(blocks)[1]).unlink()
    mine.write_text("a file of the user's own stays")
    assert begins_anew("block 0 is missing")
    assert list(run.path.glob(f"{UNFINISHED}*")) == [mine]
    mine.unlink()
    other = (run.path / interrupted(blocks, seed=1)[2]).read_bytes()
    (run.path / interrupted(blocks)[2]).write_bytes(other)
    assert begins_anew("block 1 is missing")


def test_a_full_disk_ends_no_evaluation_of_many_images(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest is not saved either: it would name a file that is not there."""
    monkeypatch.setattr(gathering, "_BLOCK", 8)
    whole, save = run.evaluate(num_samples=60, quiet=True), RunDirectory.save_tensors

    def full(self: RunDirectory, name: str, *content: Any) -> None:
        if name != UNFINISHED:
            raise BadInput(f"{name}: No space left on device")
        save(self, name, *content)

    monkeypatch.setattr(RunDirectory, "save_tensors", full)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        computed = interrupt_at(0, patched)
        patched.setattr(gathering.Kept, "note", lambda kept: kept.save() if len(computed) < 6 else press_ctrl_c())
        run.evaluate(num_samples=60, quiet=True)
    assert "No space left on device" in capsys.readouterr().err
    assert not list(run.path.glob(f"{UNFINISHED}*"))
    assert same(run.evaluate(num_samples=60, quiet=True), whole)


def press_ctrl_c() -> None:
    raise KeyboardInterrupt
