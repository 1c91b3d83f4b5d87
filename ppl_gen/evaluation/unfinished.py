"""An evaluation that was interrupted goes on where it stopped, to the same numbers.

`evaluation.part` holds what is done of it, and a key: the SHA-256 of all that the numbers depend on. If the key of the
next evaluation differs, or the file is damaged, that evaluation begins anew. Of many images, most of what is done lies
in further files, `evaluation.part-….`, each with the same key.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment.config import KINDS, environment
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import UNFINISHED, RunDirectory, checksum, warn
from ppl_gen.experiment.state import tensors_of
from ppl_gen.inference.gathering import Kept


def unfinished(fitted: Fitted, options: EvaluationOptions, images: str, device: str, *, quiet: bool) -> Kept:
    """What is done of an evaluation, and where its blocks are kept.

    :param images: SHA-256 of the images.
    :param device: name of the device.
    """
    directory, key = fitted.directory, cache(partial(_key, fitted, options, images, device))
    try:
        kept = Kept(_Files(directory, key))
    except Exception as error:  # not written by this package
        directory.leave_out(UNFINISHED, error)
        directory.remove_unfinished()
        return Kept(_Files(directory, key))
    if kept.seconds_found and not quiet:
        print(f"goes on with an evaluation that was interrupted after {kept.seconds_found:.0f} s", file=sys.stderr)
    return kept


class _Files:
    """The files of an unfinished evaluation, as a `Store`.

    :param key: returns the key of the evaluation. A file with another key is none of it.
    """

    def __init__(self, directory: RunDirectory, key: Callable[[], str]):
        self.directory, self.key = directory, key

    def save(self, name: str, tensors: dict[str, Tensor], state: Any) -> bool:
        try:
            self.directory.save_tensors(_file(name), tensors, {"key": self.key(), **state})
        except BadInput as error:  # a disk that is full ends no evaluation
            warn(error.sentence)
            return False
        return True

    def load(self, name: str) -> tuple[dict[str, Tensor], Any] | None:
        found = self.directory.load_tensors(_file(name))
        return None if found is None or found[1].get("key") != self.key() else found


def _file(name: str) -> str:
    return f"{UNFINISHED}-{name}" if name else UNFINISHED


def _key(fitted: Fitted, options: EvaluationOptions, images: str, device: str) -> str:
    """SHA-256 of the weights, the images, the options, the code of the user's classes, and the versions."""
    config, given = fitted.directory.config, fitted.given
    weights = {name: each.detach().cpu() for name, each in tensors_of(fitted.modules).items()}
    parts = {
        "config": {name: value for name, value in config.items() if name != "command"},
        "code": [given.fingerprint(kind, getattr(fitted.config, kind)) for kind in KINDS],
        "environment": environment(),
        "weights": checksum(weights),
        "provenance": fitted.provenance(options),
        "options": options.to_json(),
        "images": images,
        "device": device,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
