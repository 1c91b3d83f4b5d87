"""The configuration of a run. Importing it imports no torch, so that what only reads runs starts fast."""

import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ppl_gen
from ppl_gen import components
from ppl_gen.components import find
from ppl_gen.core.options import option
from ppl_gen.data_options import DataOptions
from ppl_gen.experiment.options import TrainingOptions

if TYPE_CHECKING:
    from ppl_gen.data import Data

ORIGIN = ("format", "command", "versions", "git_commit", "num_threads", "data_name", "data_notice")
"""Keys of `config.json` that are no options: where and how the run was made. They do not identify it."""


@dataclass(frozen=True)
class Config:
    """Everything that determines a run. Model and guide are names of the package's own, or `file.py:Class`."""

    model: str = option("vae", column="model")
    model_options: Mapping[str, Any] = field(default_factory=dict)
    guide: str = option("normal", column="guide")
    guide_options: Mapping[str, Any] = field(default_factory=dict)
    data: DataOptions = field(default_factory=DataOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    num_samples: int = option(1000, identifies=False)
    """Importance samples per image for log p(x) after training."""
    init_from: str | None = None
    """Directory of the run whose last weights training starts from."""
    fixed_model: bool = False
    """Train the guide alone."""
    prior: str | None = option(None, column="prior")
    """In the place of the model's own."""
    prior_options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self, data: "Data") -> dict[str, Any]:
        """The content of `config.json`: every option, with the defaults filled in, and where it was made."""
        import torch

        from ppl_gen.data import fingerprint

        model_options = _resolved("model", find("model", self.model), self.model_options)
        guide_options = _resolved("guide", find("guide", self.guide), self.guide_options)
        prior = None if self.prior is None else find("prior", self.prior)
        return {
            "model": self.model,
            "model_options": model_options,
            "model_sha256": components.fingerprint(self.model),
            "guide": self.guide,
            "guide_options": guide_options,
            "guide_sha256": components.fingerprint(self.guide),
            "prior": self.prior,
            "prior_options": {} if prior is None else _resolved("prior", prior, self.prior_options),
            "prior_sha256": None if self.prior is None else components.fingerprint(self.prior),
            # The data set that it became, so that nothing is left to what is on disk next time.
            "data": asdict(self.data) | {"data": data.name if self.data.data == "auto" else self.data.data},
            "data_name": data.name,
            "data_sha256": fingerprint(self.data.data),
            "data_notice": data.notice,
            "training": asdict(self.training),
            "num_samples": self.num_samples,
            "init_from": self.init_from,
            "fixed_model": self.fixed_model,
            "versions": {name: version(name) for name in ("torch", "pyro-ppl", "numpy")}
            | {"ppl_gen": ppl_gen.__version__, "python": platform.python_version()},
            "num_threads": torch.get_num_threads(),
            "git_commit": _git_commit(),
            "command": sys.argv,
        }


def _resolved(kind: components.Kind, cls: type, chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {option.name: chosen.get(option.name, option.default) for option in components.options(kind, cls)}


def _git_commit() -> str | None:
    """The commit of the checkout that the package runs from, if it does."""
    folder = Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return run.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
