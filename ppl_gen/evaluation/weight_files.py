"""Files of log importance weights from elsewhere, as a comparison reads them: each takes the place of a run.

A file is an .npz of NumPy. It holds `log_weights` [samples, images] and, if its writer has them, these single values:

- `name`: the name of its row; by default the name of the file.
- `images_sha256`: SHA-256 of the images, by `ppl_gen.images_sha256`. With it the row is paired with others.
- `observation`: kind of p(x), as `ppl_gen.judge` takes it.
- `seed`: the seed of the training, 0 by default. Files of one name and several seeds share a row.

No pickles are read, and an array that does not fit into memory is refused by its header.
"""

import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ppl_gen.core.errors import BadInput, shown, words_of
from ppl_gen.core.memory import is_out_of_memory
from ppl_gen.core.paths import is_file, reading
from ppl_gen.core.progress import Progress
from ppl_gen.data.headers import npy_header, require_free
from ppl_gen.evaluation.reading import Evaluated, Images
from ppl_gen.experiment.run_directory import Json

_LONGEST = 200  # characters of a text


def read_weight_file(path: Path) -> Evaluated:
    """Judge the log weights in a file, as an evaluation in the place of a run's.

    :raises BadInput: for a file that is missing or damaged, or whose content is not of its kind.
    """
    if not is_file(path):
        raise BadInput(f"{path}: no such file of log weights")
    with reading(path):
        try:
            with zipfile.ZipFile(path) as archive:
                about = _about(path.stem, archive)
                return _judged(path, about, _log_weights(archive))
        except BadInput as error:
            raise BadInput(f"{path}: {error.sentence}") from None
        except Exception as error:  # zipfile, zlib and NumPy raise errors of many kinds
            if isinstance(error, OSError) or is_out_of_memory(error):
                raise
            raise BadInput(f"{path}: truncated, or not an .npz file of log weights ({words_of(error, 150)})") from None


def _judged(path: Path, about: Json, log_weights: np.ndarray) -> Evaluated:
    from ppl_gen.evaluation.recording import summarize  # torch, which a comparison of runs does not need
    from ppl_gen.inference.judging import judge

    count = log_weights.shape[1]
    with Progress(count, "image") as progress:
        advance = progress.advancing(str(path), f"{len(log_weights)} log weights per image")
        found = judge(log_weights, observation=about["observation"], progress=advance)
    known = "images_sha256" in about
    about |= {"guide": None, "num_images": count, "num_parameters": None}
    summary = about | summarize({"importance": found}, "importance")
    images = Images(None, None, count, None, about["observation"])
    # Files of one name share a row. Those of unknown images do not, because their images may differ.
    config = {"model": about["model"]} | ({"images_sha256": about["images_sha256"]} if known else {"file": str(path)})
    values = found.elbo.numpy(), found.log_px.numpy(), {k: each.numpy() for k, each in found.iwae.items()}
    settings = {"estimator": "importance", "num_samples": found.num_samples}
    return Evaluated(
        *(path, config, about["training_seed"], images, settings, summary, *values),
        estimates={"importance": values[1]},
        labels=None,
        last={},
        gaps={},
        calibration={},
        of_run=False,
    )


def _about(stem: str, archive: zipfile.ZipFile) -> Json:
    """The single values in a file, by the names that a summary has.

    :param stem: name of the file, which is the default of `name`.
    """
    from ppl_gen.inference.judging import Observation

    name = _text(archive, "name", stem)
    if not name.strip() or not name.isprintable():
        raise BadInput(f"name {shown(name)} must be a word or some words, in one line")
    observation, kinds = _text(archive, "observation", "unstated"), get_args(Observation)
    if observation not in kinds:
        raise BadInput(f"observation {shown(observation)}: choose from {', '.join(kinds)}")
    about: Json = {"model": name, "observation": observation, "training_seed": _seed(archive)}
    if (sha256 := _text(archive, "images_sha256", "")) != "":
        if not re.fullmatch(r"[0-9a-f]{64}", sha256.lower()):
            raise BadInput(f"images_sha256 {shown(sha256)} must have 64 hexadecimal digits")
        about["images_sha256"] = sha256.lower()
    return about


def _text(archive: zipfile.ZipFile, name: str, default: str) -> str:
    """A text in a file; the default if it has none of that name."""

    def check(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> None:
        if shape != () or dtype.kind != "U" or dtype.itemsize > 4 * _LONGEST:
            raise BadInput(f"{name} must be one text of at most {_LONGEST} characters")

    found = _array(archive, name, check)
    return default if found is None else str(found)


def _seed(archive: zipfile.ZipFile) -> int:
    """The seed in a file; 0 if it has none."""
    rule = "seed must be a whole number, at least 0 and below 2^63"

    def check(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> None:
        if shape != () or dtype.kind not in "iu":
            raise BadInput(rule)

    found = _array(archive, "seed", check)
    seed = 0 if found is None else int(found)
    if not 0 <= seed < 2**63:
        raise BadInput(rule)
    return seed


def _log_weights(archive: zipfile.ZipFile) -> np.ndarray:
    from ppl_gen.inference.judging import check_layout

    def check(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> None:
        check_layout(shape, dtype)
        require_free(f"log_weights {list(shape)}", math.prod(shape) * dtype.itemsize)

    found = _array(archive, "log_weights", check)
    if found is None:
        names = ", ".join(name.removesuffix(".npy") for name in archive.namelist()[:5]) or "none"
        raise BadInput(f"has no array called log_weights; its arrays: {words_of(names)}")
    return found


def _array(archive: zipfile.ZipFile, name: str, check: Callable[..., None]) -> np.ndarray | None:
    """An array of numbers or text; None if there is none of that name.

    :param check: called with its shape and its type before it is read.
    """
    if f"{name}.npy" not in archive.namelist():
        return None
    with archive.open(f"{name}.npy") as file:
        shape, dtype = npy_header(file)
        if min(shape, default=0) < 0:
            raise ValueError(f"the shape {shape} is negative")
        check(shape, dtype)
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)
