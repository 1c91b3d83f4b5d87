"""The run directory: everything of a run that is written to or read from disk.

Every file but `metrics.jsonl` is written under a temporary name and renamed, so that a run killed at any moment holds
whole files only. `metrics.jsonl` is appended to, and cut back to the checkpoint on resuming. One process writes at a
time; any number may read meanwhile. Nothing that is read here can run code, and no link is followed.
"""

import errno
import io
import itertools
import json
import math
import os
import re
import secrets
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_gen.core.commands import command, external_class_options, line, resuming_options
from ppl_gen.core.convert import convert
from ppl_gen.core.errors import BadInput, shown, words_of
from ppl_gen.core.files import append, is_file, read_bytes, readable_errors, write_file, write_files
from ppl_gen.core.paths import exists, is_folder
from ppl_gen.experiment import contents
from ppl_gen.experiment.locks import only_writer

if TYPE_CHECKING:  # importing torch takes seconds, and NumPy a tenth of one; reading JSON needs neither
    import numpy as np
    import xarray
    from torch import Tensor

Json = dict[str, Any]
"""Content of a JSON object."""
FORMAT = 1
"""Version of the layout. A run from a later version is refused."""
GROUP = "evaluation"
"""Group of `evaluation.nc` that holds the variables."""
UNFINISHED = "evaluation.part"
"""File of what is done of an evaluation that was interrupted, and beginning of the names of its further files."""
_UNFINISHED_NAME = rf"{re.escape(UNFINISHED)}(-[0-9]+-[0-9]+)?"
_BLOCK_NAME = r"evaluation-[0-9a-f]{8}-[0-9]{5}\.nc"
_AGAIN = {
    UNFINISHED: ("evaluate",),
    "evaluation.json": ("evaluate",),
    "evaluation.nc": ("evaluate",),
    "gaps.json": ("evaluate", "--gaps"),
    "calibration.json": ("calibrate",),
    "quality.json": ("quality",),
    "explorer.json": ("fit", "--resume"),
    "posteriors.npz": ("fit", "--resume"),
}
"""The command that makes a file again, and its options."""
_LARGEST = 2**30
"""Most bytes of the arrays of an .npz file. Those of a run take a few MB."""


class RunDirectory:
    """A directory with the files of one run."""

    def __init__(self, path: Path, config: Json, *, writes: bool = True):
        self._named, self._seen_from = path, Path.cwd()
        self.config = config
        self.writes = writes
        """True if this process writes files: one of several processes does."""
        self.loaded: int | None = None
        """Training steps of the weights that were loaded from here; None if none were."""

    @property
    def path(self) -> Path:
        """The path as it was named; if the working directory has changed since, the absolute path."""
        return self._named if Path.cwd() == self._seen_from else self._seen_from / self._named

    @classmethod
    def create(cls, out: Path | None, stem: str, config: Json) -> "RunDirectory":
        """A new run directory. It holds a complete `config.json` from the moment it exists.

        :param out: the directory; None for `runs/<stem>-<number>` with the first free number.
        :raises BadInput: if it exists already or cannot be written.
        """
        parent = Path("runs") if out is None else out.parent
        check_new(out)
        config = {"format": FORMAT, **config}
        scratch = parent / f".{os.getpid()}-{secrets.token_hex(4)}.tmp"
        with readable_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
            _clear_unfinished(parent)
            scratch.mkdir()
            try:
                write_file(scratch / "config.json", to_json(config).encode())
                for path in [out] if out else (parent / f"{stem}-{n}" for n in itertools.count(1)):
                    if _renamed(scratch, path):
                        return cls(path, config)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        check_new(out)  # another process has made it meanwhile
        raise BadInput(f"--out {out}: cannot be made")

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """An existing run. Raises `BadInput` for a directory that is no run, is damaged, or was made by a later
        version."""
        path = Path(convert("path", path, Path))
        check_there(path)
        file = path / "config.json"
        try:
            config = contents.read(_content(file) or b"", "")
            if isinstance(version := config.get("format"), int) and version > FORMAT:
                raise BadInput(
                    f"{path}: written by a later version of ppl_gen (format {version}; this version reads {FORMAT}); "
                    "upgrade ppl_gen"
                )
            contents.check(config, file.name)
        except BadInput:
            raise
        except ValueError as error:
            raise BadInput(f"{file}: damaged, or not written by ppl_gen ({error})") from None
        return cls(path, config)

    # Writing ---------------------------------------------------------------------------------------------------

    def writing(self) -> AbstractContextManager[None]:
        """Keep other processes from writing to the run for the length of a block, if this one does.

        :raises BadInput: if another process writes to it.
        """
        return only_writer(self.path) if self.writes else nullcontext()

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files that belong together, by their names.

        :raises BadInput: if they cannot be written. The files that were there are intact.
        """
        if self.writes and files:
            write_files({self._at(name): content for name, content in files.items()})

    def write_file(self, name: str, content: bytes) -> None:
        self.write({name: content})

    def write_json(self, name: str, content: Json) -> None:
        self.write({name: to_json(content).encode()})

    def _at(self, name: str) -> Path:
        """The path of a file to write. Raises `BadInput` if its folder is a link, which may lead out of the run."""
        path = self.path / name
        if path.parent != self.path and path.parent.is_symlink():
            raise BadInput(f"{path.parent}: is a link, which is not followed; put a folder in its place")
        return path

    # JSON, arrays and pictures ---------------------------------------------------------------------------------

    def read_json(self, name: str) -> Json | None:
        """The content of a JSON file, of its type in `contents`; None if there is none.

        :raises BadInput: if it is damaged, with the command that makes it again.
        """
        return self._parsed(name, _content(self.path / name))

    def _parsed(self, name: str, content: bytes | None) -> Json | None:
        try:
            return None if content is None else contents.read(content, name)
        except ValueError as error:
            raise self.damaged(name, error) from None

    def read_evaluation(self) -> tuple[Json | None, bytes | None]:
        """The content of `evaluation.json` and that of `evaluation.nc`, of one evaluation; None for a missing file, and
        for values in blocks. They are read again if another process has replaced them meanwhile.

        :raises BadInput: for an `evaluation.json` that is damaged.
        """
        file = self.path / "evaluation.json"
        while True:
            summary, values = _content(file), _content(self.path / "evaluation.nc")
            if _content(file) == summary:
                found = self._parsed(file.name, summary)
                return found, None if found is not None and "blocks" in found else values

    def blocks(self, summary: Json) -> Iterator[bytes]:
        """The content of each block of an evaluation's values, one after the other.

        :raises BadInput: for a block that is missing.
        """
        for name in summary["blocks"]:
            content = _content(self.path / name) if re.fullmatch(_BLOCK_NAME, name) else None
            if content is None:
                raise self.damaged("evaluation.json", f"its block {shown(name)} is missing")
            yield content

    def keep_blocks(self, names: Collection[str]) -> None:
        """Remove the blocks of earlier evaluations.

        :param names: the blocks of the latest one; if there are some, an `evaluation.nc` is removed as well.
        """
        for path in [*self.path.glob("evaluation-*.nc"), *([self.path / "evaluation.nc"] if names else [])]:
            if self.writes and path.name not in names and re.fullmatch(f"{_BLOCK_NAME}|evaluation.nc", path.name):
                path.unlink(missing_ok=True)

    def find_json(self, name: str) -> Json | None:
        """As `read_json`, for what is shown beside other results: a damaged file is left out, with a warning."""
        try:
            return self.read_json(name)
        except BadInput as error:
            warn(error.sentence)
            return None

    def damaged(self, name: str, reason: object) -> BadInput:
        """The error for a file that cannot be used, in a line that says how to make it again."""
        again = ""
        if name in _AGAIN:
            module, *options = _AGAIN[name]
            arguments, named = [str(self.path), *options], external_class_options(self.config)
            if module == "fit":
                arguments, named = [*options, str(self.path)], resuming_options(self.config)
            again = f"; make it again: {line(command(module, *arguments, *named))}"
        return BadInput(f"{self.path / name}: damaged ({words_of(reason)}){again}")

    def add_array(self, name: str, key: str, values: "np.ndarray") -> None:
        """Write an array to an .npz file of the run. It replaces the array with the same key."""
        self.write_file(name, to_npz(self.arrays(name) | {key: values}))

    def arrays(self, name: str) -> "dict[str, np.ndarray]":
        """The arrays of numbers of an .npz file of the run; empty if there is none. A damaged file is left out, with a
        warning."""
        try:
            content = _content(self.path / name)
            return {} if content is None else _arrays(content)
        except BadInput as error:
            warn(error.sentence)
        except Exception as error:  # zipfile, zlib and NumPy raise errors of many kinds
            self.leave_out(name, error)
        return {}

    def leave_out(self, name: str, reason: object) -> None:
        """Warn of a damaged file that is left out."""
        warn(self.damaged(name, reason).sentence)

    # Metrics ---------------------------------------------------------------------------------------------------

    def append_metrics(self, line: Json) -> None:
        if self.writes:
            append(self.path / "metrics.jsonl", (json.dumps(_json_content(line)) + "\n").encode())

    def metrics(self) -> list[Json]:
        """The lines of `metrics.jsonl`. The last line is left out if it was cut off when the process was killed. Any
        other line that is damaged is left out with a warning."""
        return [*self._from_the_last()][::-1]

    @property
    def last(self) -> Json:
        """The last line of `metrics.jsonl`; empty if there is none. The lines before it are not parsed."""
        return next(self._from_the_last(), {})

    def _from_the_last(self) -> Iterator[Json]:
        """The lines of `metrics.jsonl`, the last first."""
        path = self.path / "metrics.jsonl"
        lines = (_content(path) or b"").split(b"\n")
        for number in range(len(lines), 0, -1):
            try:
                yield contents.read(lines[number - 1], path.name)
            except ValueError as error:
                if number < len(lines):
                    warn(f"{path}: line {number} is damaged and left out ({error})")

    def finished(self, epochs: int) -> bool:
        """True if training has reached this number of epochs, or was stopped early when this number was planned."""
        return self.last.get("epoch", 0) >= epochs or self.last.get("stopped") == epochs

    def cut_metrics(self, step: int) -> None:
        """Drop the lines of `metrics.jsonl` after a step."""
        kept = [json.dumps(_json_content(line)) + "\n" for line in self.metrics() if line["step"] <= step]
        self.write({"metrics.jsonl": "".join(kept).encode()})

    # Checkpoint ------------------------------------------------------------------------------------------------

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoint.safetensors"

    def save_checkpoint(self, tensors: "Mapping[str, Tensor]", state: Json) -> None:
        """Write tensors by name, and all other state as a JSON object."""
        self.save_tensors(self.checkpoint_path.name, tensors, state)

    def load_checkpoint(self) -> "tuple[dict[str, Tensor], Json] | None":
        """The tensors and the state of the checkpoint; None if there is none. Raises `BadInput` if it is damaged."""
        return self.load_tensors(self.checkpoint_path.name)

    def save_tensors(self, name: str, tensors: "Mapping[str, Tensor]", state: Json) -> None:
        """Write a file of tensors by name and a JSON object."""
        if not self.writes:
            return
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"state": json.dumps(state), "crc32": str(checksum(tensors))}
        self.write({name: save(tensors, metadata)})

    def load_tensors(self, name: str) -> "tuple[dict[str, Tensor], Json] | None":
        """The content of a file that `save_tensors` has written; None if there is none.

        :raises BadInput: if it is damaged.
        """
        from safetensors import safe_open

        path = self.path / name
        if not is_file(path):
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = contents.read(metadata["state"], path.name)
            intact = metadata["crc32"] == str(checksum(tensors))
        except Exception as error:  # safetensors raises errors of many kinds
            raise BadInput(f"{path}: damaged, or not a checkpoint of ppl_gen ({words_of(error)})") from None
        if not intact:
            raise BadInput(f"{path}: damaged: its checksum does not match")
        return tensors, state

    def remove_unfinished(self) -> None:
        """Remove the files of an evaluation that was interrupted."""
        for path in self.path.glob(f"{UNFINISHED}*"):
            if re.fullmatch(_UNFINISHED_NAME, path.name):
                self.remove(path.name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.writes:
            (self.path / name).unlink(missing_ok=True)

    def step(self) -> int | None:
        """Number of training steps of the weights in the checkpoint; None if it is missing or cannot be read."""
        from safetensors import safe_open

        try:
            if not is_file(self.checkpoint_path):
                return None
            with safe_open(self.checkpoint_path, framework="np") as file:
                step: int = contents.read(file.metadata()["state"], self.checkpoint_path.name)["step"]
                return step
        except Exception:  # safetensors raises errors of many kinds; `load_checkpoint` reports them
            return None

    def stale(self, found: Json) -> bool:
        """True if the weights were trained on after a result was made of them.

        :param found: the content of the result's JSON file.
        """
        now = self.step()
        return now is not None and found.get("training_step", now) != now


def _renamed(scratch: Path, path: Path) -> bool:
    """Rename a directory; False if there is something of that name already."""
    if exists(path):
        return False
    try:
        os.rename(scratch, path)
    except OSError as error:  # another process has made it since
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise
    return True


def _clear_unfinished(parent: Path) -> None:
    """Remove what processes have left that were killed while they made a run, which takes them less than a second."""
    for path in parent.glob(".*.tmp"):
        if re.fullmatch(r"\.\d+-[0-9a-f]{8}\.tmp", path.name) and time.time() - path.lstat().st_mtime > 3600:
            shutil.rmtree(path, ignore_errors=True)  # which follows no link


def check_there(path: Path) -> None:
    """Raise `BadInput` for a path that is no run directory."""
    if not is_folder(path):
        raise BadInput(f"{path}: no such run directory")
    if not is_file(path / "config.json"):
        raise BadInput(f"{path}: not a run directory: it has no config.json")


def check_new(out: Path | None) -> None:
    """Raise `BadInput` if a run directory exists already or cannot be made, before any work is done."""
    if out is None:
        return
    if exists(out, "--out"):
        again = line(["--resume", out])
        raise BadInput(f"--out {out}: exists already; name a new directory, or continue it with {again}")
    parent = next(folder for folder in (out.parent, *out.parent.parents) if exists(folder, "--out"))
    if not is_folder(parent, "--out") or not os.access(parent, os.W_OK | os.X_OK):
        raise BadInput(f"--out {out}: cannot be written: no permission in {parent}, or not a directory")


def check_folder(out: Path) -> None:
    """Raise `BadInput` if a folder for several runs is a run directory itself."""
    if exists(out / "config.json", "--out"):
        raise BadInput(f"--out {out}: is a run directory; name a folder for the runs")


def to_netcdf(images: "xarray.Dataset") -> bytes:
    """The content of an `evaluation.nc`. HDF5 may end the process if a disk is full, so that it writes to memory."""
    return bytes(images.to_netcdf(None, group=GROUP, engine="netcdf4"))


def to_npz(arrays: "Mapping[str, np.ndarray]") -> bytes:
    """The content of an .npz file."""
    import numpy as np

    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def to_json(content: Any) -> str:
    """Indented JSON, as in the files of a run."""
    return json.dumps(_json_content(content), indent=2) + "\n"


_INFINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}


def _json_content(content: Any) -> Any:
    """Content that JSON can hold. NaN becomes null, and an infinite number the string "Infinity" or "-Infinity", which
    `float` reads."""
    if isinstance(content, dict):
        return {str(key): _json_content(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_json_content(value) for value in content]
    if type(content).__module__ == "numpy" and not content.shape:  # json has no numbers of NumPy
        content = content.item()
    return _INFINITE.get(content) if isinstance(content, float) and not math.isfinite(content) else content


def _content(path: Path) -> bytes | None:
    """The content of a file; None if there is none. Raises `BadInput` if it cannot be read, or is a link."""
    try:
        return read_bytes(path)
    except FileNotFoundError:
        return None


def _arrays(content: bytes) -> "dict[str, np.ndarray]":
    """The arrays in an .npz file.

    :raises Exception: of many kinds, before memory is taken, for a file that holds anything else than numbers, or
        whose headers announce more than it may hold.
    """
    import numpy as np

    from ppl_gen.data.headers import npy_header

    size = 0
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                shape, dtype = npy_header(file)
            if dtype.kind not in "biuf":
                raise ValueError(f"{member} holds no numbers")
            size += math.prod(shape) * dtype.itemsize
    if size > _LARGEST:
        raise ValueError(f"its arrays take {size / 2**30:.0f} GiB")
    with np.load(io.BytesIO(content)) as found:
        return dict(found)


def warn(text: str) -> None:
    """Print a warning, once in a process and folder: several readers may meet the same damaged file."""
    _print_once(f"warning: {text}", Path.cwd())


@cache
def _print_once(text: str, _: Path) -> None:
    print(text, file=sys.stderr)


def checksum(tensors: "Mapping[str, Tensor]") -> int:
    """CRC-32 of tensors on the CPU, with their names."""
    import torch

    checksum = 0
    for name in sorted(tensors):
        content = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        checksum = zlib.crc32(content.data, zlib.crc32(name.encode(), checksum))
    return checksum
