"""An `Evaluation`: the bound and log p(x) of the same images, made in memory or read from a run.

It holds the recorded content of `evaluation.json`, and of `evaluation.nc` if there is one. An evaluation by an earlier
version therefore shows the numbers of that version. Reading and printing it needs neither torch nor a model.
"""

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ppl_gen.core.errors import BadInput
from ppl_gen.core.memory import MANY_IMAGES
from ppl_gen.core.tables import Row, fixed, html, named, sentence
from ppl_gen.evaluation import entries, table
from ppl_gen.experiment.run_directory import GROUP, Json, to_json, to_netcdf, warn

if TYPE_CHECKING:
    import numpy as np
    import pandas
    import xarray
    from torch import Tensor

    from ppl_gen.experiment.run_directory import RunDirectory
    from ppl_gen.inference.estimate import Estimate


@dataclass(frozen=True, eq=False, repr=False)
class Mean:
    """A mean over images in nats, as an evaluation has recorded it. It is NaN if none was recorded."""

    mean: float
    se: float
    """Standard error over images."""
    mc_se: float | None = None
    """Monte Carlo standard error; None if none was recorded, as for an exact value."""
    bias: float | None = None
    """Estimated bias; None if none was recorded."""
    at_least: bool = False
    """Verdict on the value: True if the true value is likely larger."""
    estimator: str = ""
    """Name of the estimator, if the mean is a log p(x)."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the estimator, such as `num_samples`."""
    values: "np.ndarray | None" = None
    """Value of each image [images]; None if the evaluation has none."""

    def __str__(self) -> str:
        return f"{'at least ' if self.at_least else ''}{fixed(self.mean)}" + (
            f" ± {fixed(self.se)}" if math.isfinite(self.se) else ""
        )

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The ELBO with its terms, the IWAE bounds, and every estimate of log p(x) of the same images. One of the estimates
    is primary.

    >>> from ppl_gen.evaluation.evaluation import Evaluation
    >>> elbo = {"mean": -99.65, "se": 0.25}
    >>> log_px = {"mean": -94.42, "se": 0.24, "estimator": "exact", "at_least": False}
    >>> evaluation = Evaluation({"elbo": elbo, "log_px": log_px})
    >>> evaluation.log_px, evaluation.primary
    (-94.42 ± 0.24, 'exact')
    """

    summary: Json
    """Content of `evaluation.json`."""
    images: "xarray.Dataset | None" = None
    """Content of `evaluation.nc`, with a dimension `image`."""

    # Making, reading and writing -------------------------------------------------------------------------------------

    @classmethod
    def of(
        cls,
        estimates: "Mapping[str, Estimate]",
        primary: str,
        about: Mapping[str, Any],
        labels: "Tensor | None" = None,
        dim: int | None = None,
    ) -> "Evaluation":
        """An evaluation from estimates of the same images.

        :param estimates: estimates by name, in the order of the report. `exact` or `importance` is among them; the
            latter has the ELBO.
        :param primary: name of the estimate that is the evaluation's log p(x).
        :param about: further keys of `evaluation.json`: model, images, options.
        :param labels: labels of the images.
        :param dim: number of pixels of an image, times the number of channels, if pixels are levels: the evaluation
            then has bits per dimension, too.
        """
        from ppl_gen.evaluation.recording import dataset, summarize

        summary = {**about, **summarize(estimates, primary)}
        if dim is not None:
            bits = {name: entries.in_bits(summary[name], dim) for name in ("elbo", "log_px")}
            summary["bits_per_dim"] = {"dim": dim, **bits}
        return cls(summary, dataset(estimates, primary, summary, labels))

    @classmethod
    def read(cls, directory: "RunDirectory") -> "Evaluation | None":
        """The evaluation of a run; None if it has none.

        :raises BadInput: for files that are damaged or do not belong together.
        """
        summary, content = directory.read_evaluation()
        if summary is None or content is None:
            return None if summary is None else cls(summary)
        try:
            key = json.dumps(summary), content
            if key not in _LAST:
                _remember(key, _images(summary, content))
            return cls(summary, _LAST[key].copy(deep=True))
        except Exception as error:  # h5netcdf, xarray and h5py raise errors of many kinds
            raise directory.damaged("evaluation.nc", error) from None

    @classmethod
    def latest(cls, directory: "RunDirectory") -> "Evaluation | None":
        """As `read`; None also if the weights were trained on after the evaluation."""
        found = cls.read(directory)
        return None if found is None or directory.stale(found.summary) else found

    @classmethod
    def find(cls, directory: "RunDirectory") -> "Evaluation | None":
        """As `latest`; None also if it is damaged, with a warning."""
        try:
            return cls.latest(directory)
        except BadInput as error:
            warn(error.sentence)
            return None

    def write(self, directory: "RunDirectory", most: int = MANY_IMAGES) -> None:
        """Write `evaluation.nc` and `evaluation.json`. The values of more images are written in blocks, one after the
        other: `evaluation-<number of the evaluation>-<number of the block>.nc`. `evaluation.json` names them.

        :param most: most images of a file.
        """
        # evaluation.json is the last: it marks a complete evaluation.
        values, text = self.to_xarray(), to_json(self.summary)
        if (count := values.sizes["image"]) <= most:
            content = to_netcdf(values)
            directory.write({"evaluation.nc": content, "evaluation.json": text.encode()})
            directory.keep_blocks([])
            directory.remove_unfinished()
            _remember((json.dumps(json.loads(text)), content), values.copy(deep=True))
            return
        number = hashlib.sha256(f"{most} {text}".encode()).hexdigest()[:8]
        names = [f"evaluation-{number}-{block:05}.nc" for block in range(-(-count // most))]
        for block, name in enumerate(names):
            part = values.isel(image=slice(block * most, (block + 1) * most))
            directory.write_file(name, to_netcdf(part))
        directory.write_json("evaluation.json", self.summary | {"blocks": names})
        directory.keep_blocks(names)
        directory.remove_unfinished()

    @property
    def has_values(self) -> bool:
        """True if the values of each image are recorded: here, or in the blocks of a run."""
        return self.images is not None or "blocks" in self.summary

    def to_json(self) -> Json:
        """Content of `evaluation.json`."""
        return self.summary

    def to_xarray(self) -> "xarray.Dataset":
        """Content of `evaluation.nc`: a variable over the dimension `image` for each quantity.

        :raises BadInput: if there are no values per image.
        """
        if self.images is None and "blocks" in self.summary:
            raise BadInput("the values per image of this evaluation lie in blocks; read evaluation-….nc one by one")
        if self.images is None:
            raise BadInput("this evaluation has no values per image: evaluation.nc is missing; evaluate again")
        return self.images

    def to_dataframe(self) -> "pandas.DataFrame":
        """A row for each image, and a column for each quantity of `evaluation.nc`: `label`, if there are labels,
        `elbo`, `iwae_1`, `iwae_10`, ….

        :raises BadInput: if there are no values per image.
        """
        images = self.to_xarray()
        flat = images.drop_dims("k", errors="ignore")
        if "iwae" in images:
            flat = flat.assign({f"iwae_{int(k)}": images["iwae"].sel(k=k, drop=True) for k in images["k"]})
        first = ["label"] if "label" in flat.coords else []
        return flat.to_dataframe()[[*first, *flat.data_vars]]

    # What it says ----------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Mean:
        """The mean under a key of `evaluation.json`: `kl`, `log_px_annealed`, `second_opinion`, …."""
        variable = "log_px_second_opinion" if key == "second_opinion" else key
        values = None if self.images is None or variable not in self.images else self.images[variable].values
        return self._mean(self.summary[key], values)

    def _mean(self, entry: Json, values: "np.ndarray | None") -> Mean:
        mean, se = (math.nan if entry[key] is None else entry[key] for key in ("mean", "se"))
        errors = entry.get("mc_se"), entry.get("bias")
        if "estimator" not in entry:
            return Mean(mean, se, *errors, at_least=bool(entry.get("at_least")), values=values)
        doubted, settings = entry["at_least"], entries.settings(entry)
        return Mean(mean, se, *errors, doubted, entry["estimator"], settings, values)

    @property
    def elbo(self) -> Mean:
        """The ELBO: the mean log weight over all samples."""
        return self["elbo"]

    @property
    def log_px(self) -> Mean:
        """log p(x) by the primary estimate."""
        return self["log_px"]

    @property
    def gap(self) -> Mean | None:
        """log p(x) - ELBO; None where the ELBO is log p(x)."""
        return self["gap"] if "gap" in self.summary else None

    @property
    def iwae(self) -> dict[int, Mean]:
        """The IWAE bound L_k of each k."""
        return {
            int(k): self._mean(entry, None if self.images is None else self.images["iwae"].sel(k=int(k)).values)
            for k, entry in self.summary.get("iwae", {}).items()
        }

    @property
    def primary(self) -> str:
        """Name of the estimate that `log_px` is."""
        return entries.primary(self.summary)

    @property
    def estimates(self) -> "dict[str, Estimate]":
        """Every recorded estimate of log p(x) by name, image by image.

        :raises BadInput: if there are no values per image.
        """
        from ppl_gen.evaluation.recording import estimate

        images, others = self.to_xarray(), [key for key in self.summary if key.startswith("log_px_")]
        names = (self.primary, *(key.removeprefix("log_px_") for key in others))
        return {name: estimate(self.summary, images, name) for name in names}

    @property
    def bidirectional(self) -> Json | None:
        """Bounds by annealing on images from the model, as `evaluation.json` has them under `sandwich`; None if there
        are none."""
        return self.summary.get("sandwich")

    @property
    def bidirectional_importance(self) -> Json | None:
        """Bounds by importance sampling on images from the model, as `evaluation.json` has them under
        `sandwich_importance`; None if there are none."""
        return self.summary.get("sandwich_importance")

    @property
    def options(self) -> Json:
        """Every option of the evaluation."""
        return self.summary.get("options", {})

    # For a reader ----------------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """The results as rows of a table."""
        return table.rows(self.summary)

    def __str__(self) -> str:
        return table.table(self.summary)

    def __repr__(self) -> str:
        parts = {"ELBO": self.elbo, "log p(x)": self.log_px, "gap": self.gap}
        lines = (sentence(Row(name, str(each))) for name, each in parts.items() if each is not None)
        return named("\n".join(lines), entries.quantity(self.summary))

    def _repr_html_(self) -> str:
        caption = f"{table.title(self.summary)}: {table.images(self.summary)}; {table.UNITS}"
        return html(caption, self.rows(), table.notes(self.summary))


_LAST: "dict[tuple[str, bytes], xarray.Dataset]" = {}
"""The values that were read or written last, by the content of both files: a fit reads its evaluation again for the
pictures, and to print it."""


def _remember(key: tuple[str, bytes], images: "xarray.Dataset") -> None:
    _LAST.clear()
    _LAST[key] = images


def _images(summary: Json, content: bytes) -> "xarray.Dataset":
    """The data set in an `evaluation.nc` that belongs to an `evaluation.json`."""
    import h5netcdf
    import xarray

    # A file that cannot be opened leaves an object. Without this, it prints a traceback when it is deleted.
    h5netcdf.File._writable = False
    with xarray.open_dataset(io.BytesIO(content), group=GROUP, engine="h5netcdf") as dataset:
        variables = {str(name): each for name, each in dataset.variables.items()}
        entries.check_variables(summary, variables, len(content))
        images = dataset.load()
    entries.check_match(summary, images.attrs, {name: images[name].values for name in variables})
    return images
