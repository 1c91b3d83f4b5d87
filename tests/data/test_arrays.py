"""Images that are handed over in Python: what is taken, and what is refused with a sentence."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ppl_gen.core.errors import BadInput
from ppl_gen.data import arrays
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions

X = torch.bernoulli(torch.full((20, 4, 5), 0.3), generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3


class Items(Dataset[Any]):
    """A data set of a list of items."""

    def __init__(self, items: Any):
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (TensorDataset(X), None),
        (Items(X), None),
        (Items(X.numpy()), None),
        (TensorDataset(X, Y), Y),
        (TensorDataset(X, Y.float()), Y),
        (TensorDataset(X, Y.int()), Y),
        (Items(zip(X, Y.tolist(), strict=True)), Y),
        (Items((x, True) for x in X), torch.ones(20)),
        (np.ma.masked_array(X.numpy()), None),
    ],
)
def test_taken(given: Any, labels: Tensor | None) -> None:
    """Labels of a data set are int64, whatever they were, so that the SHA-256 of the images is one."""
    collected = arrays.collect(given)
    assert np.array_equal(collected["train"], X.numpy())
    found = arrays.read(collected)
    assert found.shape == (4, 5)
    if labels is None:
        assert "train_labels" not in collected
    else:
        assert collected["train_labels"].dtype == np.int64 and np.array_equal(found.labels["train"], labels.numpy())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Items((x, "cat") for x in X), "data [train_labels]: labels must be whole numbers, not 'cat'"),
        ((X, ["cat"] * 20), "data [train_labels]: labels must be whole numbers, not ['cat', 'cat'"),
        ((X, None), "data [train_labels]: labels must be whole numbers, not None"),
        (Items((x, torch.eye(3)[0]) for x in X), "data array [train]: labels (20, 3) for 20 images; give one integer"),
        (Items((x, 0.5) for x in X), "data array [train]: labels must be integers"),
        (TensorDataset(X, Y + 0.9), "data array [train]: labels must be integers"),
        (Items([]), "data [train]: the Dataset has no items"),
        (Items([X[0], X[1, :3]]), "data [train]: items of a Dataset differ in shape: (4, 5) and (3, 5)"),
        (Items((x, 1, 2) for x in X), "data [train]: items of a Dataset must be images, or pairs of an image and its"),
        (Items(["cat"]), "data [train]: is of type str, not images [N, …]"),
        (np.ma.masked_array(X.numpy(), X.numpy() > 0), "data [train]: a masked array would lose its mask"),
        ([np.ma.masked_array(x.numpy(), x.numpy() > 0) for x in X], "data [train]: a masked array would lose its mask"),
    ],
)
def test_refused(given: Any, message: str) -> None:
    with pytest.raises(BadInput) as error:
        arrays.read(arrays.collect(given))
    assert str(error.value).startswith(message)


def test_larger_than_memory() -> None:
    huge = np.broadcast_to(np.uint8(1), (2**20, 2**10, 2**10))
    with pytest.raises(BadInput, match="copying"):
        load_data(DataOptions(), huge)


def test_an_error_of_many_lines() -> None:
    class Odd:
        def __array__(self, *args: object) -> np.ndarray:
            raise RuntimeError("no\nway")

    with pytest.raises(BadInput, match=r"not an array of numbers \(no way\)"):
        load_data(DataOptions(), Odd())


def test_the_hash_of_images_is_of_their_values(fitted: Path) -> None:
    """It is the one that an evaluation records. A type or the shape of an image makes no difference, a pixel does."""
    x = load_data(DataOptions(data="digits", train_size=60)).targets("test")
    recorded = json.loads((fitted / "evaluation.json").read_text(encoding="utf-8"))["images_sha256"]
    grid = x.reshape(-1, 8, 8)
    for same in (x, grid, grid.numpy(), grid.double().numpy(), grid.bool().numpy(), x.numpy().T.copy().T, x.tolist()):
        assert arrays.images_sha256(same) == recorded
    assert recorded == hashlib.sha256(x.numpy().astype("<f4").tobytes()).hexdigest()
    other = x.clone()
    other[3, 5] = 1 - other[3, 5]
    assert arrays.images_sha256(other) != recorded != arrays.images_sha256(x[:-1])


@pytest.mark.parametrize("given", [None, 3.0, "x.npy", [[1.0, 2.0], [3.0]], np.array([None])])
def test_what_has_no_hash(given: Any) -> None:
    with pytest.raises(BadInput, match=r"^images: "):
        arrays.images_sha256(given)
