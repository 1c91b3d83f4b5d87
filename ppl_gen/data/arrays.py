"""Images that are passed from Python: tensors, arrays, dictionaries of them, and torch's data sets.

The rules are the same as for files. The names `train`, `validation` and `test` denote splits. A missing split is a
tenth of the training images, chosen with a fixed seed.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ppl_gen.core.errors import BadInput, near_miss, shown, words_of
from ppl_gen.data import headers, pixels, sources
from ppl_gen.data.rows import Rows

NAME = "array"
"""Name of such images in a configuration and in tables."""
_MISSING = "_missing"  # ending of the names of masks


def collect(data: Any) -> dict[str, np.ndarray]:
    """Collect data that was passed from Python into arrays by name.

    :param data: images [N, …], as a tensor, an array or a list; a pair of images and labels [N]; a `Dataset` of images,
        or of pairs of an image and its label; or a dictionary of these by split: `train`, `validation`, `test`. The
        mask of a masked array of NumPy is in the result beside its images.
    :raises BadInput: for anything else.
    """
    if not isinstance(data, Mapping):
        data = {"train": data}
    for name in data:
        if name not in pixels.SPLITS:
            raise BadInput(f"--data: unknown split {name!r}{near_miss(str(name), pixels.SPLITS)}")
    if "train" not in data:
        raise BadInput("--data: needs a split 'train'")
    arrays: dict[str, np.ndarray] = {}
    for name, part in data.items():
        images, labels = _pair(str(name), part)
        if isinstance(images, np.ma.MaskedArray):
            arrays[f"{name}{_MISSING}"] = np.ma.getmaskarray(images)
        arrays[str(name)] = np.asarray(images)
        if labels is not None:
            arrays[f"{name}_labels"] = labels
    return arrays


def masked(data: Any, missing: Any) -> dict[str, Any]:
    """Images by split as masked arrays of NumPy, with their labels: what `collect` takes.

    :param data: images, as `collect` takes them.
    :param missing: true for missing pixels: an array in the shape of the images, or of one image; or a dictionary of
        these by split.
    :raises BadInput: for masks that do not fit the images.
    """
    arrays = collect(data)
    given = missing if isinstance(missing, Mapping) else {"train": missing}
    names = [name for name in pixels.SPLITS if name in arrays]
    if sorted(given) != sorted(names):
        raise BadInput(f"--missing: masks of {', '.join(map(str, given))}, but images of {', '.join(names)}; give both")
    parts: dict[str, Any] = {}
    for name in names:
        images, mask = arrays[name], np.asarray(given[name])
        if mask.dtype.kind not in "buif" or not np.isin(mask, (0, 1)).all():
            raise BadInput("--missing: must be true or 1 where a pixel is missing, and false or 0 elsewhere")
        if mask.shape not in (images.shape, images.shape[1:]):
            raise BadInput(f"--missing: the mask has shape {mask.shape}, the images {images.shape}")
        whole = np.ma.array(images, mask=np.broadcast_to(mask.astype(bool), images.shape))
        parts[name] = (whole, arrays[f"{name}_labels"]) if f"{name}_labels" in arrays else whole
    return parts


def read(arrays: Mapping[str, np.ndarray], largest: int | None = None, nan: bool = False) -> pixels.Images:
    """The images of collected arrays, by split, with their labels.

    :param largest: value of a white pixel. By default it is inferred from the pixels.
    :param nan: take pixels that are NaN, or masked, as missing.
    :raises BadInput: for arrays that no rule can read.
    """
    masks = {name: array for name, array in arrays.items() if name.endswith(_MISSING)}
    arrays = {name: array for name, array in arrays.items() if name not in masks}
    if masks and not nan:
        which = next(iter(masks)).removesuffix(_MISSING)
        raise BadInput(
            f"--data [{which}]: a masked array would lose its mask; fill it in first: x.filled(0), or fit with "
            "missing='nan'"
        )
    for name, array in arrays.items():
        headers.require_free(f"--data [{name}]: copying {array.shape}", 2 * array.size * min(array.itemsize, 4))
    found = sources.assign_roles(Path(NAME), list(arrays), arrays.__getitem__, None)
    if masks:
        none = {name: np.zeros(array.shape, bool) for name, array in found.images.items()}
        found = found._replace(missing=none | {name.removesuffix(_MISSING): mask for name, mask in masks.items()})
    images = pixels.to_images(NAME, found, largest, nan)
    # What is the caller's own is copied: it may change later.
    ours: dict[str, np.ndarray | Rows] = {
        split: rows.copy() if any(np.may_share_memory(rows, each) for each in arrays.values()) else rows
        for split, rows in images.splits.items()
        if isinstance(rows, np.ndarray)
    }
    return images._replace(splits=ours)


def fingerprint(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of arrays with their names, dtypes and shapes."""
    content = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        content.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        content.update(np.ascontiguousarray(array).reshape(-1))  # type: ignore[arg-type]  # as bytes, without a copy
    return content.hexdigest()


def images_sha256(images: Any) -> str:
    """SHA-256 of images as float32, row by row: `images_sha256` of an `evaluation.json`. It tells whether importance
    weights are of the same images as a run's evaluation.

    >>> images_sha256([[0, 1, 1], [1, 0, 1]])[:8]
    '5a3edda6'

    :param images: the images [N, …], as the model was given them: a tensor or an array. The shape of an image makes no
        difference.
    """
    try:
        array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    except Exception as error:  # rows of different lengths
        raise BadInput(f"images: is of type {type(images).__name__}, not an array ({words_of(error)})") from error
    if array.dtype.kind not in "buif" or array.ndim == 0:
        raise BadInput(f"images: must be an array of numbers [N, …], not {shown(images)}")
    content = np.ascontiguousarray(array, dtype=np.float32).reshape(-1)
    return hashlib.sha256(content).hexdigest()  # type: ignore[arg-type]  # as bytes, without a copy


def _pair(name: str, given: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Images, and labels or None."""
    if isinstance(given, Dataset):
        return _stacked(name, given)
    if isinstance(given, tuple) and len(given) == 2:
        return _array(name, given[0]), _array(f"{name}_labels", given[1])
    return _array(name, given), None


def _stacked(name: str, given: Dataset[Any]) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        rows = [given[index] for index in range(len(given))]  # type: ignore[arg-type]
    except Exception as error:  # the data set's own code fails, or it has no length
        raise BadInput(f"--data [{name}]: a Dataset needs len(data) and data[i] ({words_of(error)})") from error
    if not rows:
        raise BadInput(f"--data [{name}]: the Dataset has no items")
    if all(isinstance(row, tuple | list) and len(row) == 2 for row in rows):
        labels = _stack(f"{name}_labels", [label for _, label in rows])
        if (labels == np.rint(labels)).all():
            labels = labels.astype(np.int64)
        return _stack(name, [image for image, _ in rows]), labels
    if all(isinstance(row, tuple) and len(row) == 1 for row in rows):  # as of a TensorDataset without labels
        rows = [row[0] for row in rows]
    if any(isinstance(row, tuple) for row in rows):
        raise BadInput(f"--data [{name}]: items of a Dataset must be images, or pairs of an image and its label")
    return _stack(name, rows), None


def _stack(name: str, items: list[Any]) -> np.ndarray:
    """Images or labels of a `Dataset`, as one array."""
    arrays = [_array(name, item) for item in items]
    shapes = dict.fromkeys(array.shape for array in arrays)
    if len(shapes) > 1:
        raise BadInput(
            f"--data [{name}]: items of a Dataset differ in shape: {' and '.join(map(str, list(shapes)[:2]))}"
        )
    return np.stack(arrays)


def _array(name: str, given: Any) -> np.ndarray:
    if np.ma.is_masked(given) and not name.endswith("_labels") and given.dtype.kind in "buif":
        array: np.ndarray = given
        return array
    if any(np.ma.is_masked(part) for part in (given if isinstance(given, list | tuple) else [given])):
        raise BadInput(f"--data [{name}]: a masked array would lose its mask; fill it in first: x.filled(0)")
    try:
        if isinstance(given, Tensor):
            array = (given.float() if given.dtype == torch.bfloat16 else given).detach().cpu().numpy()
        else:
            array = np.asarray(given)
    except Exception as error:  # rows of different lengths
        kind = type(given).__name__
        raise BadInput(f"--data [{name}]: is of type {kind}, not an array of numbers ({words_of(error)})") from error
    if name.endswith("_labels") and array.dtype.kind not in "buif":
        raise BadInput(f"--data [{name}]: labels must be whole numbers, not {shown(given)}")
    if array.dtype.kind not in "buif" or (array.ndim == 0 and not name.endswith("_labels")):
        raise BadInput(
            f"--data [{name}]: is of type {type(given).__name__}, not images [N, …]; give a tensor, an array, a "
            "Dataset, or a dictionary of splits"
        )
    return array
