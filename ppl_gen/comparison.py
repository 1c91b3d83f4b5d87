"""Runs side by side: the best first, with differences in nats and their intervals.

Differences are paired, image by image. All runs are evaluated on the same images, so a difference between images that
all runs share cancels. Seeds repeat a method: an interval for the difference between two methods needs two seeds of
each.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_gen.core.errors import BadInput, shown
from ppl_gen.core.options import flat
from ppl_gen.core.paths import exists, is_weight_file
from ppl_gen.core.tables import named
from ppl_gen.evaluation.columns import Layout, labels, layout, markdown, text, written
from ppl_gen.evaluation.distances import distances
from ppl_gen.evaluation.notes import notes_of
from ppl_gen.evaluation.reading import OPTIONS, check_same_images, images_of, read, with_defaults
from ppl_gen.evaluation.rows import rows_of
from ppl_gen.evaluation.weight_files import read_weight_file
from ppl_gen.experiment.run_directory import Json

if TYPE_CHECKING:
    import pandas as pd

    from ppl_gen.experiment.config import Config, Given
    from ppl_gen.figures.canvas import Figure
    from ppl_gen.figures.posteriors import Posteriors
    from ppl_gen.report.page import Picture
    from ppl_gen.run import Run
    from ppl_gen.training.hooks import Hook


class Comparison:
    """Runs side by side, the best mean log p(x) first. Runs that differ in the seed alone share a row::

        comparison = ppl_gen.Comparison(["runs/normal", "runs/flow"])
        print(comparison)
        comparison.frame[["guide", "log_px", "log_px_difference", "log_px_difference_se"]]
        comparison.figure().savefig("bounds.png")

    Only the directories are read; no model is built. An .npz file of log weights from elsewhere takes the place of a
    run (`ppl_gen.evaluation.weight_files`).

    :param runs: run directories, `Run` objects, or files of log weights; or a single one. Each run has been evaluated.
    :raises BadInput: for a run without a complete evaluation, for runs that were evaluated on different images, and for
        two runs with the same configuration and seed.
    """

    def __init__(self, runs: "str | Path | Run | Iterable[str | Path | Run]"):
        self.runs = tuple(map(_path, runs if isinstance(runs, Iterable) and not isinstance(runs, str) else [runs]))
        if not self.runs:
            raise BadInput("name at least one run to compare")
        found = with_defaults([read_weight_file(path) if is_weight_file(path) else read(path) for path in self.runs])
        check_same_images(found)
        self.images = images_of(found)
        """The images of the evaluations: `data`, `split`, `num_images`, `binarization`, `observation`, `missing`."""
        self.rows = rows_of(found)
        self.distances = distances(found, labels(self.rows))
        """The bounds and estimates of each row, as `figure` draws them."""
        self.notes = notes_of(found, self.rows)
        """Notes for the reader, a sentence each."""

    @classmethod
    def fit(
        cls,
        model: Any,
        *,
        guides: Sequence[Any] = (None,),
        objectives: Sequence[Any] = (None,),
        priors: Sequence[Any] = (None,),
        vary: Mapping[str, Sequence[Any]] | None = None,
        seeds: int | Sequence[int] = 1,
        data: Any = None,
        out: str | Path | None = None,
        on_epoch: "Hook | None" = None,
        quiet: bool = False,
        **options: Any,
    ) -> "Comparison":
        """Fit a model with every guide, objective, prior and value of the options that vary, from every seed.

        Finished runs are skipped, and interrupted ones are continued. So the same call picks up where it stopped.

        :param model: the model, as for `Run.fit`. Guides, objectives and priors take the same, except instances: each
            run needs new weights.
        :param vary: values by the name of an option: `{"learning_rate": [1e-3, 3e-3]}`.
        :param seeds: the number of seeds, or a list of seeds.
        :param data: the images, as for `Run.fit`.
        :param out: the folder of the run directories; by default `runs/<model>`.
        :param on_epoch: called after each epoch of every run, as for `Run.fit`.
        :param options: all other options of `Run.fit`, for every run.
        :raises BadInput: for options that do not fit together, for an existing run with other options, and for runs
            that could not be compared.
        """
        from ppl_gen.core.progress import Progress
        from ppl_gen.experiment.config import configure
        from ppl_gen.experiment.planning import check_shared, combinations
        from ppl_gen.run import Run
        from ppl_gen.training.hooks import check as check_hook

        check_shared(options, vary)
        if on_epoch is not None:
            check_hook(on_epoch)
        planned = combinations(model, guides, priors, objectives, vary, seeds, out)
        configured = [configure(replace(plan.given, data=data), **plan.options, **options) for plan in planned]
        if not all(exists(plan.path, "--out") for plan in planned):
            _check_comparable(configured, vary or {})
        runs = []
        with Progress(len(planned), "run", quiet=quiet) as progress:
            for plan, (config, given) in zip(planned, configured, strict=True):
                runs.append(Run.ensure(plan.path, config, given, on_epoch=on_epoch))
                progress.advance()
                progress.note(plan.path.name)
        return cls(runs)

    # Tables ----------------------------------------------------------------------------------------------------

    @property
    def frame(self) -> "pd.DataFrame":
        """The rows as a data frame, the best first. Numbers are in nats unless named otherwise.

        The columns are the keys of `to_json`. Nested keys are joined by `_`. The column of a mean has the name of the
        quantity alone: `log_px`, beside `log_px_se` and `log_px_difference_low`. `num_seeds` is the length of `seeds`.
        Each option that distinguishes rows has a column, such as `options_latent_dim`. A number that does not exist is
        NaN.
        """
        import pandas as pd

        frame = pd.DataFrame([flat(row.to_json()) for row in self.rows])
        # Options and settings that the first row does not have go beside those that it has.
        order = list(self.rows[0].to_json())
        frame = frame[sorted(frame, key=lambda name: order.index(name.partition(".")[0]))]
        frame = frame.astype({name: float for name in frame if frame[name].isna().all()})
        frame.insert(frame.columns.get_loc("seeds"), "num_seeds", frame["seeds"].map(len))
        return frame.rename(columns=lambda name: name.removesuffix(".mean").replace(".", "_"))

    def to_json(self) -> Json:
        """The content of `compare --format json`: `images`, `rows` and `notes`."""
        return {"images": self.images._asdict(), "rows": [row.to_json() for row in self.rows], "notes": self.notes}

    def to_csv(self) -> str:
        """The rows as CSV, with means and errors in columns of their own. The cell of a term that does not exist is
        empty."""
        import pandas as pd

        lines = []
        for row in self.rows:
            joined = {"seeds": " ".join(map(str, row.seeds)), "runs": " ".join(row.runs)}
            lines.append(flat(row.to_json() | {"options": written(row.options)} | joined))
        # As objects: numbers of which a line has none stay whole, and keep all their digits.
        return pd.DataFrame(lines, dtype=object).to_csv(index=False, lineterminator="\n").rstrip("\n")

    def to_markdown(self) -> str:
        """The table in Markdown, with the values that all rows share above it and the notes below."""
        notes = [f"- {note}" for note in self.notes]
        lead = [f"{line}  " for line in self._lead()]
        return self._named("\n".join([*lead, "", *markdown(self._layout), "", *notes]))

    def __repr__(self) -> str:
        notes = [f"  {note}" for note in self.notes]
        return self._named("\n".join([*self._lead(), *text(self._layout), *notes]))

    def _repr_html_(self) -> str:
        import pandas as pd

        columns = pd.DataFrame(self._layout.columns)
        with pd.option_context("display.max_colwidth", None):
            table = columns.to_html(index=False, border=0, justify="left")
        lead = "<br>".join(map(escape, self._lead()))
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return self._named(f"<p>{lead}</p>\n{table}\n<ul>{notes}</ul>")

    def _named(self, text: str) -> str:
        """A text with the name of log p(x) of these images."""
        return named(text, self.images.quantity)

    @property
    def _layout(self) -> Layout:
        return layout(self.rows, self.images.quantity)

    def _lead(self) -> list[str]:
        """The lines above the table: the images, and the values that all rows share."""
        images, common = self.images, self._layout.common
        lines = [f"{images.words()}{images.binarized}; nats per image, larger is better"]
        if common:
            lines.append("all rows: " + ", ".join(f"{heading} {cell}" for heading, cell in common.items()))
        return lines

    # Figure and page -------------------------------------------------------------------------------------------

    def figure(self) -> "Figure":
        """How far the bounds are from log p(x): a line for each row from its ELBO to its log p(x), with intervals of
        the difference to the first row. Of more than 200 rows, the best 200."""
        from ppl_gen.figures.distances import how_far

        figure = how_far(self.distances)
        figure.rename(self._named)
        return figure

    def posteriors(self) -> "Figure":
        """The exact p(z | x) of six test images, with a row of panels for the guide of each run whose z is a plane. Of
        runs that differ in the seed alone, the first is drawn. No more than 20 rows are drawn, the best first.

        :raises BadInput: if there is no such run.
        """
        from ppl_gen.figures.posteriors import posteriors

        if not self._posteriors:
            raise BadInput(
                "--posteriors: no run has posteriors of its last weights. They need a continuous z of two units, and a "
                "model with prior() and likelihood(z)"
            )
        return posteriors(self._posteriors)

    @cached_property
    def _posteriors(self) -> "dict[str, Posteriors]":
        """Posteriors of the same test images, by the label of the row."""
        from ppl_gen.report.posteriors import shared_posteriors

        guides = [row.guide or "" for row in self.rows]
        names = labels(self.rows) if len(set(guides)) < len(guides) else guides
        found = {}
        for name, row in zip(names, self.rows, strict=True):
            if is_weight_file(Path(row.runs[0])):
                continue
            label = name.removesuffix(f" ({len(row.seeds)} seeds)") + f", seed {row.seeds[0]}" * (len(row.seeds) > 1)
            found[row.runs[0] if label in found else label] = Path(row.runs[0])
        return shared_posteriors(found)

    @cached_property
    def png(self) -> bytes:
        """The figure as the content of a .png file."""
        return self.figure().png()

    def page(self, command: Sequence[str] | None = None) -> str:
        """A page of HTML with the table, the notes, the figure, and the commands that made the runs.

        :param command: words of the command that makes the page again, which the page shows.
        """
        from ppl_gen.report.comparison_page import comparison

        if command is None:
            command = ["python", "-m", "ppl_gen.compare", *map(str, self.runs), "--report", "comparison.html"]
        pictures = [self._posterior_picture()] if self._posteriors else []
        return comparison(self.to_json(), self.distances, self._layout, self.png, command, pictures)

    def _posterior_picture(self) -> "Picture":
        from ppl_gen.figures.posteriors import caption
        from ppl_gen.report.page import Picture
        from ppl_gen.report.posteriors import MOST

        text = caption(self._posteriors)
        if len(self.rows) > len(self._posteriors) == MOST:
            text = replace(text, text=f"{text.text}. No more than {MOST} rows are drawn, the best first")
        return Picture.of(self.posteriors().png(), text)


def _check_comparable(configured: "Sequence[tuple[Config, Given]]", vary: Iterable[str]) -> None:
    """Raise `BadInput` for runs that could not stand side by side: of other test images, of another kind of p(x), or
    alike in every option that makes a method."""
    from ppl_gen.evaluation.estimating import observation
    from ppl_gen.run import Run

    for name in vary:
        option = next((each for dotted, each in OPTIONS.items() if dotted.rpartition(".")[2] == name), None)
        if option is not None and not option.metadata.get("identifies", True) and name != "num_samples":
            raise BadInput(
                f"--vary {name}: runs that differ only in it are not different methods; give it once, for all runs"
            )
    first, kinds = asdict(configured[0][0].data), dict[str, str]()
    for config, given in configured:
        for name, value in asdict(config.data).items():
            # The test images do not depend on the number of training images.
            if value != first[name] and name != "train_size":
                raise BadInput(
                    f"--vary {name}: runs are compared on the same test images, but this option changes them"
                )
        if (key := repr(sorted(config.model_options.items()))) not in kinds and set(config.model_options) & set(vary):
            assembled = Run.dry_run(config, given).assembled
            kinds[key] = observation(assembled.pair, *assembled.images("test"))
    if len(found := sorted(set(kinds.values()))) > 1:
        names = ", ".join(sorted(set(vary) & set(configured[0][0].model_options)))
        raise BadInput(
            f"--vary {names}: runs are compared by the same kind of p(x), but this changes it: {' and '.join(found)}"
        )


def _path(run: "str | Path | Run") -> Path:
    if isinstance(run, str | Path):
        return Path(run)
    if hasattr(run, "directory"):
        if getattr(run, "checkpoint", "last") == "best" and run.evaluation is None:
            raise BadInput(f"{run.path}: has no evaluation of the weights of its best epoch; call evaluate() first")
        return run.directory.path
    raise BadInput(f"runs: {shown(run)} is not a run; give run directories or Run objects")
