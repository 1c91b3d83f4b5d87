"""Results of images, block by block: joined, and kept while the work goes on, so that it need not begin again."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ppl_gen.core.memory import empty
from ppl_gen.core.progress import Advance, skip
from ppl_gen.core.seeds import random_states, set_random_states

Results = dict[Any, Any]
"""Tensors with a row for each image, by name; None, or a dictionary of the same kind, in the place of a tensor."""
Blocks = Callable[[int], Iterator[tuple[int, Results]]]
"""The blocks from the image of this number on: the number of images and the results of each."""
_EVERY = 60.0
"""Seconds between two times that the work is saved."""
_BLOCK = 2**18
"""Images whose results are saved once, in a file of their own."""


def gather_blocks(blocks: Blocks, total: int, progress: Advance | None = None) -> Results:
    """Join the results of blocks of images. The whole tensors are allocated before the first block: small tensors kept
    from every block would fragment the heap, and the memory between them could not be reused.

    Within `keeping`, blocks that were kept are not computed again, and torch's generators are left as they were.

    >>> def blocks(first):
    ...     for start in range(first, 5, 2):
    ...         rows = torch.arange(start, min(start + 2, 5))
    ...         yield len(rows), {"number": rows}
    >>> gather_blocks(blocks, 5)
    {'number': tensor([0, 1, 2, 3, 4])}

    :param total: number of all images.
    :param progress: called with the number of images just done.
    """
    kept = _KEPT.get()
    call = _Call(total) if kept is None else kept.next(total)
    if progress is not None and call.done:
        skip(progress, call.done)
    started = time.monotonic() - call.seconds
    for count, part in blocks(call.done):
        call.put(part, count, None if kept is None else random_states(torch.cuda.is_initialized()))
        call.seconds = time.monotonic() - started
        if kept is not None:
            kept.note()
        if progress is not None:
            progress(count)
    return call.whole


@dataclass
class _Call:
    """One call of `gather_blocks`."""

    total: int
    whole: Results = field(default_factory=dict)
    after: tuple[int, dict[str, Tensor]] = (0, {})
    """The number of images that are done, and the states of torch's generators after them. One attribute, so that
    Ctrl-C cannot come between the two."""
    seconds: float = 0.0
    """Time that the blocks took."""
    saved: int = 0
    """Number of files of `_BLOCK` images that are saved."""

    @property
    def done(self) -> int:
        return self.after[0]

    def put(self, part: Mapping[Any, Any], count: int, generators: dict[str, Tensor] | None) -> None:
        """Add the results of the next images."""
        self._put(self.whole, part)
        self.after = (self.done + count, generators or {})

    def _put(self, target: Results, part: Mapping[Any, Any]) -> None:
        for key, value in part.items():
            if isinstance(value, dict):
                self._put(target.setdefault(key, {}), value)
            elif value is None:
                target[key] = None
            else:
                if key not in target:
                    shape = (self.total, *value.shape[1:])
                    target[key] = value.new_empty(shape) if value.is_cuda else empty(shape, value.dtype)
                target[key][self.done : self.done + len(value)] = value


class Store(Protocol):
    """Files of tensors by name and a JSON object."""

    def save(self, name: str, tensors: dict[str, Tensor], state: Any) -> bool:
        """Write a file; False if that was not possible."""

    def load(self, name: str) -> tuple[Mapping[str, Tensor], Any] | None:
        """The content of a file; None if there is none."""


class Kept:
    """What is done of work that `gather_blocks` does in several calls, always in the same order. It is saved each
    minute, and when an error or Ctrl-C ends the work: every `_BLOCK` images in a file of their own, which is written
    once, and the rest in a file without a name.

    :raises Exception: of any kind, for files that this class has not written.
    """

    def __init__(self, store: Store):
        self._store, self._saved = store, time.monotonic()
        tensors, state = store.load("") or ({}, {"calls": []})
        self._found = [_loaded(each, index, tensors, store) for index, each in enumerate(state["calls"])]
        self._calls: list[_Call] = []
        self.seconds_reused = 0.0
        """Seconds that the blocks took which were not computed again."""

    @property
    def seconds_found(self) -> float:
        """Seconds that the blocks took which need not be computed again."""
        return sum(call.seconds for call in self._found)

    def next(self, total: int) -> _Call:
        """The next call. If some of it is done, torch's generators are set to where it was interrupted."""
        call, self._found = (self._found or [_Call(total)])[0], self._found[1:]
        if call.total != total:
            call, self._found = _Call(total), []
        self._calls.append(call)
        self.seconds_reused += call.seconds
        set_random_states(call.after[1])
        return call

    def note(self) -> None:
        """Save what is done if the last time is a minute ago."""
        if time.monotonic() - self._saved > _EVERY:
            self.save()

    def save(self) -> None:
        """Save what is done, if anything is."""
        tensors: dict[str, Tensor] = {}
        calls = self._calls + self._found
        if any(call.done for call in calls) and all(self._save_blocks(*each) for each in enumerate(calls)):
            states = [_state(call, index, tensors) for index, call in enumerate(calls)]
            self._store.save("", tensors, {"calls": states})
        self._saved = time.monotonic()

    def _save_blocks(self, index: int, call: _Call) -> bool:
        """Save the images of a call that fill files of their own; False if that was not possible."""
        while (last := (call.saved + 1) * _BLOCK) <= call.done:
            tensors: dict[str, Tensor] = {}
            whole = _tree(call.whole, slice(last - _BLOCK, last), "", tensors)
            if not self._store.save(f"{index}-{call.saved}", tensors, {"whole": whole}):
                return False
            call.saved += 1
        return True


_KEPT: ContextVar[Kept | None] = ContextVar("_KEPT", default=None)


@contextmanager
def keeping(kept: Kept | None) -> Iterator[None]:
    """Context in which `gather_blocks` keeps its blocks, and goes on where the work was interrupted."""
    before = _KEPT.set(kept)
    try:
        yield
    except BaseException:
        if kept is not None:
            kept.save()
        raise
    finally:
        _KEPT.reset(before)


def seconds_reused() -> float:
    """Seconds that the blocks took which `keeping` did not compute again."""
    kept = _KEPT.get()
    return 0.0 if kept is None else kept.seconds_reused


# As tensors by name, and a JSON object -------------------------------------------------------------------------------


def _state(call: _Call, index: int, tensors: dict[str, Tensor]) -> Any:
    """A call as a JSON object. Its tensors, but for what is saved in files of their own, are added under names that the
    object has."""
    done, generators = call.after
    whole = _tree(call.whole, slice(call.saved * _BLOCK, done), f"{index}.", tensors)
    tensors |= {f"{index}.{device}": generator for device, generator in generators.items()}
    about = {"total": call.total, "done": done, "seconds": call.seconds, "devices": list(generators)}
    return about | {"saved": call.saved, "whole": whole}


def _tree(whole: Results, images: slice, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """The results of some images as a JSON object. Its tensors are added under names that the object has."""

    def tree(value: Any) -> Any:
        if isinstance(value, dict):
            return [[key, tree(each)] for key, each in value.items()]  # keys are texts and numbers
        if value is None:
            return None
        tensors[name := f"{prefix}{len(tensors)}"] = value[images].cpu()
        return name

    return tree(whole)


def _loaded(state: Any, index: int, tensors: Mapping[str, Tensor], store: Store) -> _Call:
    """The call of a JSON object.

    :raises Exception: of any kind, for one that `_state` has not made.
    """
    call = _Call(int(state["total"]), seconds=float(state["seconds"]), saved=int(state["saved"]))
    done = int(state["done"])
    for number in range(call.saved):
        found = store.load(f"{index}-{number}")
        if found is None:
            raise ValueError(f"the file of block {number} is missing")
        call.put(_part(found[1]["whole"], found[0], _BLOCK), _BLOCK, None)
    generators = {device: tensors[f"{index}.{device}"] for device in state["devices"]}
    if "cpu" in generators:
        torch.Generator().set_state(generators["cpu"])  # an error here, and not later
    rest = done - call.done
    call.put(_part(state["whole"], tensors, rest), rest, generators)
    return call


def _part(value: Any, tensors: Mapping[str, Tensor], rows: int) -> Any:
    """The results that `_tree` has made a JSON object of.

    :param rows: number of images that they must be of.
    """
    if isinstance(value, list):
        return {key: _part(each, tensors, rows) for key, each in value}
    if value is not None and len(tensors[value]) != rows:
        raise ValueError(f"{len(tensors[value])} rows of {rows} images")
    return None if value is None else tensors[value]
