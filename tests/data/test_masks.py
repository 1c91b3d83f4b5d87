"""Masks of missing pixels: drawn, from files, NaN and masked arrays; and what they do to a data set."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.data import arrays
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data, Split

GREY = torch.rand(40, 3, 4, generator=torch.Generator().manual_seed(0))


def _digits(missing: Any = 0.5, **options: Any) -> Data:
    return load_data(DataOptions(data="digits", missing=missing, **options))


def _mask(split: Split) -> Tensor:
    assert split.missing is not None
    return split.missing


def test_a_share_is_drawn_once_for_all_runs() -> None:
    data, fewer = _digits(), _digits(train_size=100, binarization="static")
    assert torch.equal(_mask(data.train)[:100], _mask(fewer.train))
    assert torch.equal(_mask(data.validation), _mask(fewer.validation))
    assert torch.equal(_mask(data.test), _mask(fewer.test))
    assert not torch.equal(_mask(data.train)[:300], _mask(data.test))
    assert not torch.equal(_mask(data.train)[:300], _mask(data.validation))
    for share in (0.5, 0.1):  # 76,608 pixels: 6 standard errors
        assert abs(_digits(share).train.share_missing - share) < 0.011
    assert "50.2% of the pixels missing" in repr(data)


@pytest.mark.parametrize("binarization", ["dynamic", "static", "threshold", "none", "dequantized"])
def test_pixels_are_those_of_complete_images(binarization: Any) -> None:
    data, whole = _digits(binarization=binarization), load_data(DataOptions("digits", binarization=binarization))
    for split in ("train", "validation", "test"):
        x, expected = data.targets(split), whole.targets(split)
        assert torch.equal(x.isnan(), _mask(data.split(split)))
        assert torch.equal(x.nan_to_num(0), expected.masked_fill(_mask(data.split(split)), 0))
        assert torch.equal(data.complete(split), expected)
    index = torch.tensor([5, 3, 700])
    torch.manual_seed(0)
    batch = data.batch(index)
    torch.manual_seed(0)
    assert torch.equal(batch.isnan(), _mask(data.train)[index])
    assert torch.equal(batch.nan_to_num(0), whole.batch(index).masked_fill(_mask(data.train)[index], 0))


def test_the_mean_is_of_observed_pixels() -> None:
    data = _digits(binarization="none")
    x = data.targets("train").double()
    seen = (~x.isnan()).sum(0)
    torch.testing.assert_close(data.mean(), ((x.nansum(0) + 0.5) / (seen + 1)).float())
    examples = data.examples(0, 50)
    assert examples.isfinite().all() and (examples == data.mean()).any()


@pytest.mark.parametrize("form", ["rows", "images", "one"])
def test_a_file_follows_the_order_of_the_images(elsewhere: Path, form: str) -> None:
    """A pixel is missing where it is above 1/2: a shuffle of the images alone would show."""
    mask = GREY.numpy() > 0.5
    np.save("x.npy", GREY.numpy())
    np.save("mask.npy", {"rows": mask.reshape(40, 12), "images": mask, "one": mask[0].astype(float)}[form])
    data = load_data(DataOptions("x.npy", missing="mask.npy", binarization="none"))
    for split in (data.train, data.validation, data.test):
        expected = mask[0].reshape(1, 12).repeat(len(split), 0) if form == "one" else split.images.numpy() > 0.5
        assert np.array_equal(_mask(split).numpy(), expected)


def test_files_by_split(elsewhere: Path) -> None:
    x, y = GREY.numpy(), 1 - GREY.numpy()[:10]
    np.savez("x.npz", train=x, test=y)
    np.savez("mask.npz", test=y > 0.5, train=x > 0.5)
    data = load_data(DataOptions("x.npz", missing="mask.npz", binarization="none"))
    for split in (data.train, data.validation, data.test):
        assert torch.equal(_mask(split), split.images > 0.5)
    pool, test = np.zeros((1497, 8, 8), bool), np.zeros((300, 8, 8), bool)
    pool[:, 0], test[:, 1] = True, True
    np.savez("digits.npz", train=pool, test=test)
    digits = load_data(DataOptions("digits", missing="digits.npz"))
    assert _mask(digits.validation).reshape(-1, 8, 8)[:, 0].all() and _mask(digits.test).sum() == 300 * 8


@pytest.mark.parametrize("given", ["nan", "masked", "masked nan", "file", "dictionary"])
def test_nan_and_masked_arrays(elsewhere: Path, given: str) -> None:
    mask = (GREY > 0.5).numpy()
    holes = np.where(mask, np.nan, GREY.numpy())
    np.save("holes.npy", holes)
    images: Any = {
        "nan": torch.from_numpy(holes),
        "masked": np.ma.array(GREY.numpy(), mask=mask),
        "masked nan": np.ma.masked_invalid(holes),
        "file": None,
        "dictionary": {"train": holes, "test": np.ma.array(holes[:9], mask=np.isnan(holes[:9]))},
    }[given]
    options = DataOptions("holes.npy" if given == "file" else arrays.NAME, missing=float("nan"), binarization="none")
    assert options.missing == "nan"
    data = load_data(options, images)
    known = given == "masked"
    for split in (data.train, data.validation, data.test):
        assert split.values_known is known
        assert torch.equal(_mask(split), split.images > 0.5) if known else (split.images <= 0.5).all()
    assert 0.4 < data.train.share_missing < 0.6 and data.targets("train").isnan().any()


def test_masks_beside_arrays() -> None:
    mask = (GREY > 0.5).numpy()
    for given in (GREY, (GREY, torch.arange(40) % 10), {"train": GREY, "test": GREY[:9]}):
        masks = {"train": mask, "test": mask[0]} if isinstance(given, dict) else mask
        data = load_data(DataOptions(arrays.NAME, missing="nan", binarization="none"), arrays.masked(given, masks))
        assert torch.equal(_mask(data.train), data.train.images > 0.5)
        assert (data.train.labels is None) == (not isinstance(given, tuple))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (0.0, "must be a share"),
        (1.0, "must be a share"),
        (-0.5, "must be a share"),
        (float("inf"), "must be a finite number"),
        ("nan", "digits has no pixels that are NaN"),
        ("half", "give a share such as 0.5, a file"),
        ("nowhere.npy", "no such file"),
        ("cut.npy", "truncated"),
        ("wide.npy", "holds one array, but the images are train [1497], test [300]"),
        ("odd.npz", "train has shape (3, 8, 8), the images (1497, 8, 8)"),
        ("grey.npy", "must be true or 1"),
        ("none.npy", "no pixel is missing"),
        ("all.npy", "every pixel is missing"),
    ],
)
def test_refused(elsewhere: Path, missing: Any, message: str) -> None:
    Path("cut.npy").write_bytes(b"\x93NUMPY\x01")
    np.save("wide.npy", np.zeros((1497, 8, 8), bool))
    np.savez("odd.npz", train=np.ones((3, 8, 8)), test=np.ones((300, 8, 8)))
    np.save("grey.npy", np.full((8, 8), 0.5))
    np.save("none.npy", np.zeros((8, 8)))
    np.save("all.npy", np.ones((8, 8)))
    with pytest.raises(BadInput) as error:
        _digits(missing)
    assert message in str(error.value) and "missing" in str(error.value) and "\n" not in str(error.value)


def test_arrays_that_are_refused() -> None:
    with pytest.raises(BadInput, match="no pixel of array is NaN"):
        load_data(DataOptions(arrays.NAME, missing="nan"), GREY)
    with pytest.raises(BadInput, match="not finite"):
        load_data(DataOptions(arrays.NAME), GREY.masked_fill(GREY > 0.5, torch.nan))
    with pytest.raises(BadInput, match=r"would lose its mask.*missing='nan'"):
        load_data(DataOptions(arrays.NAME), np.ma.array(GREY.numpy(), mask=GREY.numpy() > 0.5))
    for masks, message in (
        (np.zeros((3, 3)), "has shape"),
        (GREY, "true or 1"),
        ({"train": np.zeros((40, 3, 4)), "test": 0}, "give both"),
    ):
        with pytest.raises(BadInput, match=message):
            arrays.masked(GREY, masks)
    whole = load_data(DataOptions("digits"))
    with pytest.raises(BadInput, match="a Data has its own masks"):
        load_data(DataOptions("digits", missing=0.5), whole)
    with pytest.raises(BadInput, match=r"missing is \[3, 12\] of train"):
        Data("x", (3, 4), "none", Split(GREY.flatten(1), missing=torch.ones(3, 12) > 0), Split(GREY[:0].flatten(1)),
             Split(GREY.flatten(1)))  # fmt: skip
