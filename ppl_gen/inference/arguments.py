"""The arguments of a user's functions: arrays and lists as tensors, and the rows of a batch."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ppl_gen.core.errors import BadInput
from ppl_gen.inference.reached import modules_of
from ppl_gen.inference.signatures import ByName, asks_for_index, guide_function, model_function, positional_names
from ppl_gen.networks.autoguides import check_rows


class Batch(NamedTuple):
    """Images [N, ...] and the further arguments of a model and a guide."""

    x: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def blocks(self, size: int, first: int = 0) -> "Iterator[tuple[int, Batch]]":
        """Batches of at most `size` images, from image number `first` on, each with the number of its first image."""
        rows = torch.arange(len(self.x), device=self.x.device)
        for start in range(first, len(self.x), size):
            yield start, take(rows[start : start + size], *self)


def take(rows: Tensor, x: Tensor, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Batch:
    """The images at `rows`, with the same rows of every tensor and packed sequence that has one row for each image, in
    the arguments and in the dictionaries, tuples and lists among them."""

    def pick(value: Any) -> Any:
        if isinstance(value, PackedSequence):
            return _packed_rows(rows, value) if int(value.batch_sizes[0]) == len(x) else value
        follows = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(x)
        return value[rows] if follows else value

    by_name = {name: map_leaves(pick, value) for name, value in (kwargs or {}).items()}
    return Batch(x[rows], tuple(map_leaves(pick, value) for value in args), by_name)


def rows_at(rows: Tensor, x: Tensor, *args: Any) -> tuple[Any, ...]:
    """The images at `rows` with their further arguments, as `take` does it, one after the other."""
    batch = take(rows, x, args)
    return batch.x, *batch.args


def first_rows(count: int, x: Tensor, *args: Any) -> tuple[Any, ...]:
    """The first images, up to `count`, with their further arguments."""
    return rows_at(torch.arange(min(count, len(x)), device=x.device), x, *args)


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to all that nested dictionaries, tuples and lists contain. A packed sequence is one element."""
    if isinstance(value, dict):
        result = copy.copy(value)
        result.update((key, map_leaves(function, each)) for key, each in value.items())
        return result
    if isinstance(value, list | tuple) and not isinstance(value, PackedSequence | torch.Size):
        parts = [map_leaves(function, each) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return function(value)


def _packed_rows(rows: Tensor, value: PackedSequence) -> PackedSequence:
    """The sequences at `rows` of a packed sequence. Padded again, they are as long as before, even if the longest one
    is not among them: a function that loops over all steps of x expects this. The steps that no sequence has are steps
    of batch size 0."""
    padded, lengths = pad_packed_sequence(value, batch_first=True)
    taken = pack_padded_sequence(padded[rows], lengths[rows.cpu()], batch_first=True, enforce_sorted=False)
    missing = taken.batch_sizes.new_zeros(len(value.batch_sizes) - len(taken.batch_sizes))
    sizes = torch.cat([taken.batch_sizes, missing])
    return PackedSequence(taken.data, sizes, taken.sorted_indices, taken.unsorted_indices)


def as_images(x: Any, *functions: Any) -> Tensor:
    """Convert images [N, ...] to a tensor. Numbers in an array or a list get the dtype and the device of the first
    parameter that the functions can reach, or torch's default.

    :raises BadInput: for anything else than numbers with one row for each image.
    """
    _check_whole("x", x)
    if not isinstance(x, Tensor):
        x = _from_numbers(x, *functions)
    elif x.dtype is torch.bool:
        x = x.to(torch.get_default_dtype())
    if x.layout is not torch.strided or x.is_complex():
        raise BadInput(f"x is a tensor of {x.dtype}, {x.layout}: give a dense tensor of real numbers [N, ...]")
    if x.dim() == 0:
        raise BadInput("x is one number: give images [N, ...], one row per image")
    return x


def _from_numbers(x: Any, *functions: Any) -> Tensor:
    """Convert an array or a list of numbers to a tensor."""
    what = f"x is a {type(x).__name__}"
    if isinstance(x, PackedSequence | dict):
        rest = "the packed sequence" if isinstance(x, PackedSequence) else "the rest of the dictionary"
        raise BadInput(f"{what}: give one tensor [N, ...], such as padded sequences, and {rest} as a further argument")
    if not isinstance(x, list | tuple) and (not hasattr(x, "__array__") or isinstance(x, str)):
        raise BadInput(f"{what}: give images as a tensor, an array or a list [N, ...]; one batch of a loader at a time")
    try:
        if isinstance(x, list | tuple) and x and all(isinstance(each, Tensor) for each in x):
            array = torch.stack(list(x)).detach().cpu().numpy()
        else:
            array = np.asarray(x)
        if array.dtype.kind not in "buif":
            raise ValueError(f"its elements are {array.dtype}")
    except Exception as error:  # rows of different lengths, or elements that are no numbers
        raise BadInput(f"{what}, not of numbers [N, ...] ({str(error).splitlines()[0]})") from error
    floating = [p for part in modules_of(*functions) for p in part.parameters(recurse=False) if p.is_floating_point()]
    dtype = floating[0].dtype if floating else torch.get_default_dtype()
    device = floating[0].device if floating else "cpu"
    if array.dtype == np.float64 and dtype is torch.float32:
        _check_rounded(array)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)).to(device, dtype)


def _check_rounded(array: np.ndarray) -> None:
    """Refuse an array of float64 if float32 loses how its rows differ."""
    values = array.reshape(len(array), -1)
    with np.errstate(all="ignore"):  # of NaN, and of what is too large for float32
        lost = np.abs(values - values.astype(np.float32)).max(0, initial=0)
        spread, size = values.std(0), np.abs(values).max(0, initial=0)
    coarse = (lost > 0.01 * spread) & (spread > 1e-12 * size)
    if coarse.any():
        column = int(coarse.argmax())
        raise BadInput(
            f"x differs by {spread[column]:.2g} around {values[:, column].mean():.6g}, which float32 does not hold: "
            "give a tensor of float64, which stays one, or scale the images"
        )


def _check_whole(name: str, value: Any) -> None:
    """Refuse a masked array, which would lose its mask as a tensor, and a nested tensor, whose rows differ in
    length."""
    parts = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(each, np.ma.MaskedArray) for each in parts):
        raise BadInput(
            f"{name} is a masked array, whose mask would be lost: give {name}.filled(0), and the mask as a further "
            "argument for a pyro.poutine.mask in the model"
        )
    if any(isinstance(each, Tensor) and each.is_nested for each in parts):
        raise BadInput(f"{name} is a nested tensor: give a tensor with rows of one length; pad the shorter ones")


def as_arguments(
    x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], model: Any, *guides: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Convert further arguments of a model and guides, by position and by name: arrays, and lists with a number or a
    row for each image, become tensors, also in dictionaries, tuples and lists. A function that has a parameter `index`
    is given the row numbers of the images, 0 … N - 1, if the arguments have none.

    :raises BadInput: for a list of sequences of different lengths.
    """
    by_position = tuple(_as_argument(f"argument {i}", value, len(x)) for i, value in enumerate(args, 2))
    by_name = {name: _as_argument(name, value, len(x)) for name, value in kwargs.items()}
    named = [
        positional_names(each)[1 : 1 + len(args)] for each in (model_function(model), *map(guide_function, guides))
    ]
    given = any({*names} - {"", None} == {"index"} for names in zip_longest(*named))  # all call this position so
    if given or any(isinstance(each, ByName) for each in args) or not asks_for_index(model, *guides):
        return by_position, by_name
    for guide in guides:
        check_rows(guide, len(x), by_name.get("index"))
    index = by_name.pop("index", torch.arange(len(x), device=x.device))
    return (*by_position, ByName(index=index)), by_name


def _as_argument(name: str, value: Any, count: int) -> Any:
    """One argument, as a tensor if it is an array, or a list of `count` numbers or rows."""
    _check_whole(name, value)
    if isinstance(value, PackedSequence):
        return value
    if isinstance(value, list | tuple | range) and len(value) == count and not _has_parts(value, count):
        tensors = [each for each in value if isinstance(each, Tensor)]
        with suppress(Exception):  # rows of different lengths, or elements that are no numbers
            if len(tensors) == count:
                return torch.stack(tensors)
            array = np.asarray(value)
            return torch.tensor(array.tolist()) if array.dtype.kind in "buif" else value
        if len(tensors) == count and _differ_in_length(tensors):
            raise BadInput(
                f"{name} is a list of {count} sequences of different lengths: pad them to one tensor, or pack them by "
                "torch.nn.utils.rnn.pack_sequence(…, enforce_sorted=False)"
            )
    if isinstance(value, dict):
        result = copy.copy(value)
        result.update((key, _as_argument(f"{name}[{key!r}]", each, count)) for key, each in value.items())
        return result
    if isinstance(value, list | tuple):
        parts = [_as_argument(f"{name}[{index}]", each, count) for index, each in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if not isinstance(value, Tensor) and hasattr(value, "__array__") and getattr(value, "ndim", None):
        array = np.asarray(value)
        if array.dtype.kind in "buif":
            return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    return value


def _has_parts(value: Any, count: int) -> bool:
    """True for a tuple of tensors that each have a row for each image, such as the two states of an LSTM."""
    return isinstance(value, tuple) and all(
        isinstance(each, Tensor) and each.dim() > 0 and len(each) == count for each in value
    )


def _differ_in_length(tensors: list[Tensor]) -> bool:
    """True for tensors of different lengths and otherwise equal shape."""
    return all(each.dim() for each in tensors) and len({each.shape[1:] for each in tensors}) == 1


def whole_number(name: str, value: Any) -> int:
    """A count, at least 1, as an int. 1e3 is accepted.

    :raises BadInput: for any other value.
    """
    try:
        number = int(value)
        whole = not isinstance(value, bool | str | bytes) and number == value
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole or number < 1:
        raise BadInput(f"--{name.replace('_', '-')} {value}: must be a whole number, at least 1")
    return number
