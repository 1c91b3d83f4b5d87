"""Splits, and their binarization."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.data import splits
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import Binarization, DataOptions
from ppl_gen.data.splits import Data, Split, with_fixed_draw


def test_dynamic_is_redrawn_for_training_only(small_mnist: Path) -> None:
    data = load_data(DataOptions(data="mnist"))
    index = torch.arange(10)
    first, second = data.batch(index), data.batch(index)
    assert set(first.unique().tolist()) == {0.0, 1.0} and not torch.equal(first, second)
    again = load_data(DataOptions(data="mnist"))
    for split in ("train", "validation", "test"):
        assert torch.equal(data.targets(split), again.targets(split))
        assert set(data.targets(split).unique().tolist()) == {0.0, 1.0}
    grey = load_data(DataOptions(data="mnist", binarization="none"))
    error = (data.targets("test") - grey.targets("test")).mean().abs()
    assert error < 5 * 0.5 / (100 * 784) ** 0.5  # 5 standard errors at most: false-alarm rate 6e-7


@pytest.mark.parametrize("index", [slice(None), slice(3), slice(40, None, 7), torch.tensor([71, 3, 3]), slice(0)])
def test_part_of_a_fixed_draw_is_part_of_the_whole(
    small_mnist: Path, monkeypatch: pytest.MonkeyPatch, index: slice | Tensor
) -> None:
    """Only as many blocks are drawn as are asked for."""
    monkeypatch.setattr(splits, "_DRAWN", 16)
    for binarization in ("dynamic", "dequantized"):
        data = load_data(DataOptions("mnist", binarization))
        assert torch.equal(data.targets("train", index), data.targets("train")[index])


def test_static_and_threshold(small_mnist: Path) -> None:
    static = load_data(DataOptions(data="mnist", binarization="static"))
    index = torch.arange(10)
    assert torch.equal(static.batch(index), static.batch(index))
    assert torch.equal(static.batch(index), static.targets("train", index))
    dynamic = load_data(DataOptions(data="mnist"))
    assert torch.equal(static.targets("test"), dynamic.targets("test"))
    assert torch.equal(static.targets("validation"), dynamic.targets("validation"))
    grey = load_data(DataOptions(data="mnist", binarization="none"))
    threshold = load_data(DataOptions(data="mnist", binarization="threshold"))
    for split in ("train", "validation", "test"):
        assert torch.equal(threshold.targets(split), (grey.targets(split) > 0.5).float())


def grey(count: int, shape: tuple[int, ...] = (4, 5), top: int = 255, seed: int = 0) -> np.ndarray:
    """Bytes 0..top, of which both ends are there."""
    images = np.random.default_rng(seed).integers(0, top + 1, (count, *shape), np.uint8)
    images.flat[:2] = 0, top
    return images


@pytest.mark.parametrize("binarization", ["dynamic", "static", "threshold", "dequantized", "none"])
def test_data_by_hand_are_what_they_say(binarization: Any) -> None:
    """The same splits give the targets that `load_data` gives, bit for bit, and no grey ones."""
    raw = load_data(DataOptions("digits", "none"))
    ours = Data("digits", (8, 8), binarization, raw.train, raw.validation, raw.test)
    theirs = load_data(DataOptions("digits", binarization))
    for name in ("train", "validation", "test"):
        assert torch.equal(ours.targets(name), theirs.targets(name))
        if binarization in ("dynamic", "static", "threshold"):
            assert set(ours.targets(name).unique().tolist()) == {0.0, 1.0}
    again = replace(ours, name="again").to("cpu")
    assert all(torch.equal(again.targets(name), ours.targets(name)) for name in ("train", "validation", "test"))


def test_data_by_hand_of_several_kinds() -> None:
    """Grey floats beside binary ones, and no validation split: what is binary stays, what is grey is drawn."""
    x = torch.rand(40, 6)
    binary = torch.bernoulli(x)
    data = Data("mine", (2, 3), "dynamic", Split(x), Split(binary), Split(x))
    assert torch.equal(data.targets("validation"), binary)
    assert set(data.targets("test").unique().tolist()) == {0.0, 1.0}
    levels = Split((x * 255).to(torch.uint8), scale=255)
    data = Data("mine", (6,), "dynamic", levels, Split(torch.zeros(0, 6)), levels)
    assert set(data.targets("test").unique().tolist()) == {0.0, 1.0}
    data = Data("mine", (6,), "dequantized", levels, Split(torch.zeros(0, 6)), levels)
    assert not torch.equal(data.targets("test"), levels.pixels())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((2, 3), "dynamic", Split(torch.rand(4, 6) * 255)), "lie outside"),
        (((2, 3), "threshold", Split(torch.rand(4, 6) - 0.5)), "lie outside"),
        (((2, 3), "static", Split(torch.full((4, 6), math.nan))), "lie outside"),
        (((2, 3), "dynamic", Split(torch.full((4, 6), 255, dtype=torch.uint8))), "lie outside"),
        (((2, 3), "dequantized", Split(torch.rand(4, 6))), "needs grey levels"),
        (((2, 3), "treshold", Split(torch.rand(4, 6))), "threshold"),
        (((3, 3), "dynamic", Split(torch.rand(4, 6))), r"needs \[N, 9\]"),
        (((2, 3), "dynamic", Split(torch.rand(4, 2, 3))), r"needs \[N, 6\]"),
    ],
)
def test_data_by_hand_that_cannot_be(arguments: Any, words: str) -> None:
    shape, binarization, split = arguments
    with pytest.raises(BadInput, match=words):
        Data("mine", shape, binarization, split, split, split)


@pytest.mark.parametrize("binarization", ["dynamic", "static", "threshold", "none", "dequantized"])
def test_targets_are_the_callers_own(binarization: Any) -> None:
    """Changing them changes no image of the data set."""
    data = load_data(DataOptions(data="digits", train_size=100, binarization=binarization))
    for split in ("train", "validation", "test"):
        before = data.targets(split).clone()
        data.targets(split).zero_()
        data.targets(split, torch.arange(3)).zero_()
        assert torch.equal(data.targets(split), before) and before.any()


@pytest.mark.parametrize("binarization", ["static", "threshold", "dequantized"])
def test_the_size_of_a_block_changes_no_draw(monkeypatch: pytest.MonkeyPatch, binarization: Binarization) -> None:
    grey = Split(torch.arange(30 * 7, dtype=torch.uint8).view(30, 7), None, 255)
    whole = with_fixed_draw(grey, binarization, 0)
    monkeypatch.setattr(splits, "_PIXELS", 4 * 7)
    assert torch.equal(with_fixed_draw(grey, binarization, 0).images, whole.images)
