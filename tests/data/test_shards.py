"""Folders of .npy files as data sets, mapped and read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_gen.core.errors import BadInput
from ppl_gen.data import shards
from ppl_gen.data.loading import fingerprint, load_data
from ppl_gen.data.options import DataOptions

IMAGES = np.random.default_rng(0).integers(0, 256, (500, 6, 5), np.uint8)


@pytest.mark.parametrize("limit", [0, 2**60])
def test_a_folder_is_one_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    np.save(tmp_path / "x.npy", IMAGES)
    for name, part in (("b.npy", IMAGES[100:101]), ("a.npy", IMAGES[:100]), ("c.NPY", IMAGES[101:])):
        with open(folder / name, "wb") as file:
            np.save(file, part)
    (folder / "readme.txt").write_text("no images")
    monkeypatch.setattr(shards, "MAPPED", limit)
    whole, data = (load_data(DataOptions(str(path))) for path in (tmp_path / "x.npy", folder))
    assert "500 images of 6 × 5 in 3 files" in data.notice
    for name in ("train", "validation", "test"):
        assert torch.equal(data.targets(name), whole.targets(name))
    before = fingerprint(str(folder))
    np.save(folder / "b.npy", 255 - IMAGES[100:101])
    assert before is not None and fingerprint(str(folder)) not in (before, None)


BAD_SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "shape": (
        lambda path: np.save(path, np.ones((3, 6, 4), np.uint8)),
        "uint8 (6, 4), but those of a.npy are uint8 (6",
    ),
    "type": (lambda path: np.save(path, np.ones((3, 6, 5), np.float32)), "images are float32"),
    "text": (lambda path: path.write_text("hello"), "must be an .npy file"),
    "empty": (lambda path: path.write_bytes(b""), "must be an .npy file"),
    "no images": (lambda path: np.save(path, np.ones((0, 6, 5), np.uint8)), "in C's order, with an image"),
    "dark": (lambda path: np.save(path, np.ones((3, 6, 5), np.uint8)), "pixels reach 1, but those of a.npy 255"),
    "one number": (lambda path: np.save(path, np.uint8(1)), "must be an .npy file"),
    "order": (lambda path: np.save(path, np.asfortranarray(IMAGES[:3])), "in C's order"),
    "folder": (lambda path: path.mkdir(), "no regular file"),
}


@pytest.mark.parametrize("limit", [0, 2**60])
@pytest.mark.parametrize("kind", [*BAD_SHARDS, "truncated"])
def test_a_bad_file_in_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, limit: int
) -> None:
    monkeypatch.setattr(shards, "MAPPED", limit)
    np.save(tmp_path / "a.npy", IMAGES)
    bad, words = tmp_path / "b.npy", "truncated"
    if kind == "truncated":
        np.save(bad, IMAGES)
        bad.write_bytes(bad.read_bytes()[:-1])
    else:
        make, words = BAD_SHARDS[kind]
        make(bad)
    with pytest.raises(BadInput) as error:
        load_data(DataOptions(str(tmp_path)))
    assert f"--data {bad}: " in error.value.sentence and words in error.value.sentence
    assert len(error.value.sentence.splitlines()) == 1


def test_files_of_different_brightness(tmp_path: Path) -> None:
    """A dark or a black file is no file on another scale; nor is any, if the value of white is given."""
    np.save(tmp_path / "a.npy", IMAGES)
    for name, top in (("b", 0), ("c", 2)):
        np.save(tmp_path / f"{name}.npy", np.full((3, 6, 5), top, np.uint8))
    assert load_data(DataOptions(str(tmp_path))).train.scale == 255
    np.save(tmp_path / "d.npy", np.ones((3, 6, 5), np.uint8))
    assert load_data(DataOptions(str(tmp_path), largest_pixel=255)).train.scale == 255


def test_a_folder_without_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is a folder without \.npy files"):
        load_data(DataOptions(str(tmp_path)))
