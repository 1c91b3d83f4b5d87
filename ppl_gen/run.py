"""`Run`: fit, open, evaluate, sample and resume a run from Python. The commands call it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from ppl_gen.core import parallel
from ppl_gen.core.commands import is_function
from ppl_gen.core.convert import convert
from ppl_gen.core.errors import BadInput, Kept, begun, kept, require_choice
from ppl_gen.core.paths import exists
from ppl_gen.data.loading import load_data
from ppl_gen.data.splits import Data
from ppl_gen.evaluation.estimating import check_before_training, evaluate, evaluate_after_training, other_guides
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.evaluation.explaining import Responsibilities, explain
from ppl_gen.evaluation.filling import Filled, fill
from ppl_gen.evaluation.gap_split import GapSplit, split_gap
from ppl_gen.evaluation.gradient_quality import JudgedGradients, judge_gradients
from ppl_gen.evaluation.guide_calibration import Calibrated, calibrate_guide
from ppl_gen.evaluation.new_images import latents, with_images
from ppl_gen.evaluation.options import EvaluationOptions, evaluation_options
from ppl_gen.evaluation.own_estimators import split
from ppl_gen.evaluation.quality import Quality, quality
from ppl_gen.evaluation.sampling import sample
from ppl_gen.evaluation.splicing import Spliced, detect
from ppl_gen.evaluation.table import Printed, title
from ppl_gen.evaluation.use_options import (
    FillOptions,
    GradientOptions,
    GuideCalibrationOptions,
    QualityOptions,
    ResponsibilityOptions,
    SampleOptions,
    SpliceOptions,
    options_from,
)
from ppl_gen.experiment.assembling import thaw
from ppl_gen.experiment.config import (
    Config,
    Given,
    changed_code,
    check_same,
    config_of,
    configure,
    continuing,
    resumed,
)
from ppl_gen.experiment.fitted import Fitted, check_same_images, resolve_device
from ppl_gen.experiment.options import Checkpoint
from ppl_gen.experiment.run_directory import Json, RunDirectory, check_new
from ppl_gen.experiment.starting import steps_of
from ppl_gen.inference.estimate import Estimate
from ppl_gen.inference.pair import Pair
from ppl_gen.report.page import Gallery
from ppl_gen.report.run_page import gallery, write_report
from ppl_gen.training.checks import Prepared, prepare
from ppl_gen.training.extending import with_epochs
from ppl_gen.training.hooks import Hook, ends_training, hooks_of, in_training
from ppl_gen.training.loop import train

if TYPE_CHECKING:
    import pandas

Result = TypeVar("Result", bound=Printed)


class Run:
    """A run directory, with the model, guide and data of the run, which are loaded when they are first used.

    `Run.fit` makes a run, `Run.open` opens one.
    """

    def __init__(
        self,
        directory: RunDirectory,
        given: Given | None = None,
        *,
        checkpoint: Checkpoint = "last",
        device: str = "auto",
    ):
        self.directory, self.given = directory, given or Given()
        self.checkpoint, self.device = checkpoint, device
        self.in_training = False
        """True while a hook is called: the weights may not be saved yet."""

    def __repr__(self) -> str:
        evaluation = Evaluation.find(self.directory)
        about = f"{title(self.directory.config)}, on {self.directory.config['data_name']}"
        return f"Run({str(self.path)!r}): {about}\n{'not evaluated' if evaluation is None else repr(evaluation)}"

    def _repr_html_(self) -> str:
        evaluation = Evaluation.find(self.directory)
        return f"<pre>{escape(repr(self))}</pre>" if evaluation is None else evaluation._repr_html_()

    # Making one, and opening one -------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        model: Any = None,
        *,
        guide: Any = None,
        prior: Any = None,
        objective: Any = None,
        data: Any = None,
        init_from: "str | Path | Run | None" = None,
        estimator: Any = None,
        guide_options: Mapping[str, Any] | None = None,
        prior_options: Mapping[str, Any] | None = None,
        objective_options: Mapping[str, Any] | None = None,
        out: str | Path | None = None,
        on_epoch: Hook | None = None,
        quiet: bool = False,
        **options: Any,
    ) -> "Run":
        """Train a model and a guide, evaluate them and draw the pictures.

        :param model: a name such as `"vae"`, `"file.py:Class"`, a class, or an instance. An instance is trained in
            place, from the weights that it has. `guide`, `prior` and `objective` take the same.
        :param data: a name, a file, images [N, …] as a tensor or an array, a pair of images and labels [N], a
            `torch.utils.data.Dataset`, or a dictionary of these by split: `train`, `validation`, `test`. A missing
            split is a tenth of the training images, chosen with a fixed seed. `missing="nan"`: pixels that are NaN or
            masked are missing; `missing=mask`: as `data=numpy.ma.array(x, mask=mask), missing="nan"`.
        :param init_from: a run; training starts from its last weights.
        :param estimator: estimators of the evaluation after training, as for `evaluate`.
        :param guide_options: keyword arguments of the guide's constructor. `prior_options`, `objective_options` and
            `estimator_options` work the same way.
        :param out: the run directory; by default `runs/<model>-<guide>-<data>-<number>`.
        :param on_epoch: called after each epoch with the run and its line of metrics. It returns `True` to end training
            after this epoch, and `None` or `False` to go on.
        :param quiet: print nothing.
        :param options: all other options of `python -m ppl_gen.fit`, with underscores: `epochs=20`, `seed=1`,
            `latent_dim=2`.
        :raises BadInput: before anything is written, for a pair or options that cannot be fitted.
        :raises Failed: if the loss is not finite. The run keeps its last checkpoint.
        """
        chosen = {"guide": guide_options, "prior": prior_options, "objective": objective_options}
        options |= {f"{kind}_options": each for kind, each in chosen.items() if each is not None}
        given = Given(model, guide, prior, objective, data)
        config, given = configure(given, init_from=init_from, estimator=estimator, **options)
        return cls.start(config, given, out=out, on_epoch=on_epoch, quiet=quiet)

    @classmethod
    def start(
        cls,
        config: Config,
        given: Given | None = None,
        *,
        out: str | Path | None = None,
        on_epoch: Hook | None = None,
        quiet: bool = False,
    ) -> "Run":
        """Fit a run from a complete configuration, as `fit` does from its arguments."""
        out = None if out is None else Path(convert("out", out, Path))
        parallel.join()
        quiet = quiet or parallel.rank() > 0
        check_new(out)  # by all, before the data are loaded, where they meet
        hooks = hooks_of(config.training, on_epoch)
        prepared = prepare(config, given, quiet=quiet)
        check_before_training(prepared.assembled)
        content = config.to_json(prepared.assembled.data, given)
        first = parallel.rank() == 0
        stem = config.stem(prepared.assembled.data.name)
        path = parallel.broadcast_object(RunDirectory.create(out, stem, content).path if first else None)
        assert path is not None
        directory = RunDirectory.open(path)
        directory.writes = first
        run = cls(directory, given)
        with directory.writing():
            _finish(run, prepared, hooks, quiet)
        return run

    @classmethod
    def ensure(cls, path: Path, config: Config, given: Given, *, on_epoch: Hook | None = None) -> "Run":
        """The finished run of a configuration in a directory. If it is missing it is fitted; if it was interrupted it
        is continued.

        :raises BadInput: for an existing run with other options.
        """
        if not exists(path, "--out"):
            return cls.start(config, given, out=path, on_epoch=on_epoch, quiet=True)
        directory = RunDirectory.open(path)
        check_same(directory, config, given)
        run = cls(directory, given)
        page = exists(directory.path / "report.html")  # it is written last
        if not (page and directory.finished(config.training.epochs) and Evaluation.find(run.directory)):
            return run.resume(on_epoch=on_epoch, quiet=True)  # which compares the images, too
        if given.data is not None or is_function(config.data.data):
            check_same_images(directory, load_data(config.data, given.data))
        return run

    @classmethod
    def dry_run(cls, config: Config, given: Given | None = None) -> Prepared:
        """Check a pair on 8 images: data, sites, shapes, densities, and a gradient for every parameter.

        :raises BadInput: if the pair cannot be fitted.
        """
        prepared = prepare(config, given)
        check_before_training(prepared.assembled)
        return prepared

    @classmethod
    def open(
        cls,
        path: "str | Path | Run",
        *,
        model: Any = None,
        guide: Any = None,
        prior: Any = None,
        objective: Any = None,
        data: Any = None,
        estimator: Any = None,
        checkpoint: Checkpoint = "last",
        device: str = "auto",
    ) -> "Run":
        """An existing run.

        :param path: the run directory, or an open run of it.
        :param model: the class or the instance of the model, if the run was fitted with your own. It must be handed
            over again: a run directory never runs code. Weights are loaded into an instance. `guide` and `prior` work
            the same way.
        :param objective: the objective, if it is your own and training is to be resumed.
        :param data: the images, if the run was fitted to images of your own. Their SHA-256 must be the recorded one.
        :param estimator: the estimators that the run was fitted with, if some are your own and it is to be resumed.
        :param checkpoint: `last`: the weights after the last epoch; `best`: those after the epoch with the best
            validation ELBO.
        :param device: `auto`, `cpu` or `cuda`.
        :raises BadInput: for a directory that is no run. Evaluation, metrics and figures can be read without the
            objects above.
        """
        require_choice("checkpoint", checkpoint, Checkpoint)
        resolve_device(device)
        return cls(
            RunDirectory.open(path.path if isinstance(path, Run) else path),
            Given(model, guide, prior, objective, data, estimator),
            checkpoint=checkpoint,
            device=device,
        )

    def resume(self, epochs: int | None = None, *, on_epoch: Hook | None = None, quiet: bool = False) -> "Run":
        """Continue an interrupted run, which ends with the same numbers as one that was not interrupted; or train a
        finished run for more epochs.

        :param epochs: number of epochs of the whole run, if more than in its configuration. The optimizer continues
            from its state, and a schedule of the learning rate as one over all of these epochs.
        :param on_epoch: a hook, as for `fit`.
        """
        parallel.join()
        self.directory.writes = parallel.rank() == 0
        with self.directory.writing():
            self.directory.config = RunDirectory.open(self.path).config  # another process may have extended the run
            _resume(self, epochs, on_epoch, quiet or parallel.rank() > 0)
        return self

    # What it holds ---------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def config(self) -> Config:
        """Every option of the run, with defaults filled in."""
        return config_of(self.directory, None)

    @cached_property
    def fitted(self) -> Fitted:
        """Model, guide and data, with the weights loaded."""
        fitted = Fitted.open(self.path, self.given, checkpoint=self.checkpoint, device=self.device)
        fitted.directory.writes = self.directory.writes
        return fitted

    @property
    def model(self) -> nn.Module:
        """The model, in eval mode until `train()` is called."""
        return self.fitted.model.eval()

    @property
    def guide(self) -> nn.Module:
        """The guide, in eval mode until `train()` is called."""
        return self.fitted.guide.eval()

    @property
    def data(self) -> Data:
        """The images: training, validation and test split."""
        return self.fitted.data

    @property
    def pair(self) -> Pair:
        """Sites, plate and shapes of model and guide."""
        return self.fitted.pair

    @property
    def metrics(self) -> "pandas.DataFrame":
        """Measurements before the first epoch and after each: `epoch`, `train.elbo`, `validation.elbo`, …"""
        import pandas

        return pandas.json_normalize(self.directory.metrics())

    @property
    def figures(self) -> Gallery:
        """The pictures of the run by name, with captions. A notebook shows them."""
        return gallery(self.directory)

    @property
    def evaluation(self) -> Evaluation | None:
        """The last evaluation; None if there is none, if the weights were trained on after it, or if it is of the last
        weights and the run was opened at its best ones.

        :raises BadInput: if it is damaged, with the command that makes it again.
        """
        found = Evaluation.latest(self.directory)
        of_others = found is not None and self.checkpoint == "best" != found.summary["checkpoint"]
        return None if of_others else found

    # How good it is --------------------------------------------------------------------------------------------

    def evaluate(
        self,
        options: EvaluationOptions | None = None,
        *,
        data: Any = None,
        estimator: Any = None,
        quiet: bool = False,
        **chosen: Any,
    ) -> Evaluation:
        """Estimate the ELBO and log p(x) of the images of a split. Writes `evaluation.json`, `evaluation.nc` and two
        pictures, which replace those of an earlier evaluation.

        :param options: the options. Their fields can also be given by name: `num_samples=5000`, `split="validation"`, …
        :param data: images [N, …] of your own to use instead of the test images: a tensor, an array, a pair of images
            and labels, or a `Dataset`. They are binarized as the test images are. Nothing is written.
        :param estimator: name of an estimator, as for `--estimator`; one of your own as a function, a class, an
            instance or by its name `file.py:NAME`; or a list of these.
        """
        from ppl_gen.report.pictures import draw_evaluation

        own: list[Any] = []
        if estimator is not None:
            chosen["estimator"], own = split(estimator)
        if data is not None and "split" in chosen:
            raise BadInput("split: data= is evaluated in place of a split; leave one of them out")
        options = evaluation_options(options, chosen, self.checkpoint)
        others = other_guides(options, self.given)
        if data is not None:
            new = with_images(_checked(self), data)
            return evaluate(new, replace(options, split="test"), others=others, own=own, quiet=quiet)
        with self.directory.writing():
            evaluation = evaluate(_checked(self), options, others=others, own=own, keep=True, quiet=quiet)
            evaluation.write(self.directory)
            if self.directory.writes:
                draw_evaluation(self.directory)
                write_report(self.directory)
        return evaluation

    def log_px(self, x: Any, *, quiet: bool = True, **chosen: Any) -> Estimate:
        """log p(x) of each of your own images: exact if possible, else by importance sampling.

        :param x: images, as `data` of `evaluate`.
        :param chosen: options of the evaluation by name: `num_samples=5000`, …
        """
        if x is None:  # which is the test split for `evaluate`
            raise BadInput("x None: give images [N, …]")
        found = self.evaluate(data=x, quiet=quiet, **chosen)
        return found.estimates[found.primary]

    def latents(self, x: Any, *, num_samples: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """Samples [samples, images, units] of each latent site for images of your own: z ~ q(z | x), or z ~ p(z | x) if
        the guide leaves z to enumeration.

        :param x: images, as `data` of `evaluate`.
        """
        return latents(_checked(self), x, num_samples, seed)

    def split_gap(self, options: EvaluationOptions | None = None, *, quiet: bool = False, **chosen: Any) -> GapSplit:
        """Split log p(x) - ELBO into approximation and amortization gap. Writes `gaps.json`.

        :param options: options, as for `evaluate`.
        """
        options = evaluation_options(options, chosen, self.checkpoint)
        return _keep(self, "gaps.json", partial(split_gap, options=options, quiet=quiet))

    def calibrate(
        self, options: GuideCalibrationOptions | None = None, *, quiet: bool = False, **chosen: Any
    ) -> Calibrated:
        """Test on images from the model whether the guide is too narrow, too wide or shifted, and whether importance
        weights repair it. Writes `calibration.json` and pictures."""
        from ppl_gen.report.uses import draw_calibration

        options = options_from(GuideCalibrationOptions, options, chosen)
        found = partial(calibrate_guide, options=options, quiet=quiet)
        return _keep(self, "calibration.json", found, draw_calibration)

    def gradients(
        self, options: GradientOptions | None = None, *, quiet: bool = False, **chosen: Any
    ) -> JudgedGradients:
        """Compare gradient estimators of a discrete z with the exact gradient of the ELBO: bias, variance and cost.
        Writes `gradients.json` and a picture."""
        from ppl_gen.report.uses import draw_gradients

        options = options_from(GradientOptions, options, chosen)
        return _keep(self, "gradients.json", partial(judge_gradients, options=options, quiet=quiet), draw_gradients)

    # What it is used for ---------------------------------------------------------------------------------------

    def sample(self, options: SampleOptions | None = None, **chosen: Any) -> Tensor:
        """Images from the model, each of the shape that images have in the data: [images, …].

        :param options: the options. Their fields can also be given by name: `num_images=25`, `source="grid"`,
            `draws=True`, …
        """
        images = sample(_checked(self), options_from(SampleOptions, options, chosen))
        return images.reshape(-1, *self.data.shape)

    def fill(self, options: FillOptions | None = None, *, quiet: bool = False, **chosen: Any) -> Filled:
        """Fill in the hidden pixels of images given their visible ones. Writes `fill.json` and a picture."""
        from ppl_gen.report.uses import draw_filled

        found = partial(fill, options=options_from(FillOptions, options, chosen), quiet=quiet)
        return _keep(self, "fill.json", found, draw_filled)

    def splice(self, options: SpliceOptions | None = None, *, quiet: bool = False, **chosen: Any) -> Spliced:
        """Tell spliced images from natural ones by log p(x). Writes `splice.json` and pictures."""
        from ppl_gen.report.uses import draw_spliced

        found = partial(detect, options=options_from(SpliceOptions, options, chosen), quiet=quiet)
        return _keep(self, "splice.json", found, draw_spliced)

    def explain(
        self, options: ResponsibilityOptions | None = None, *, quiet: bool = False, **chosen: Any
    ) -> Responsibilities:
        """Say which component of a mixture explains which image. Writes `responsibilities.json` and pictures."""
        from ppl_gen.report.uses import draw_responsibilities

        found = partial(explain, options=options_from(ResponsibilityOptions, options, chosen), quiet=quiet)
        return _keep(self, "responsibilities.json", found, draw_responsibilities)

    def quality(self, options: QualityOptions | None = None, *, quiet: bool = False, **chosen: Any) -> Quality:
        """Score samples by a classifier that is trained on the same images. Writes `quality.json` and pictures."""
        return self.quality_of([self], options_from(QualityOptions, options, chosen), quiet=quiet)[0]

    @staticmethod
    def quality_of(runs: "Sequence[Run]", options: QualityOptions, *, quiet: bool = False) -> list[Quality]:
        """Score the samples of several runs, as `quality` does for one. Runs of the same images share one
        classifier."""
        from ppl_gen.report.uses import draw_quality

        with ExitStack() as stack:
            for run in runs:
                stack.enter_context(run.directory.writing())
            found = quality([_checked(run) for run in runs], options, quiet=quiet)
            for run, each in zip(runs, found, strict=True):
                _write(run, "quality.json", each, draw_quality)
        return found


def _resume(run: Run, epochs: int | None, on_epoch: Hook | None, quiet: bool) -> None:
    directory = run.directory
    config = resumed(directory, config_of(directory, run.given), run.given)
    for name in changed_code(directory, config, run.given):
        print(f"warning: {name} has changed since the run was started", file=sys.stderr)
    hooks = hooks_of(config.training, on_epoch)
    longer = None if epochs is None else with_epochs(directory, config, convert("epochs", epochs, int))
    # The run that it started from may be gone by now.
    start = not exists(directory.checkpoint_path)
    if start and directory.config.get("init_from_steps") not in (None, steps_of(config.init_from)):
        raise BadInput(
            f"{directory.path}: was to start from {config.init_from}, which has been trained further since; delete it, "
            "and start again"
        )
    prepared = prepare(longer or config, run.given, quiet=quiet, start=start)
    check_same_images(directory, prepared.assembled.data)
    check_before_training(prepared.assembled)
    if longer is None and directory.finished(config.training.epochs) and not quiet:
        print("training was already finished; its evaluation:", file=sys.stderr)
    _finish(run, prepared, hooks, quiet)


def _finish(run: Run, prepared: Prepared, hooks: list[Hook], quiet: bool) -> None:
    """Do the steps that the run has not done yet: training, evaluation, pictures."""
    from ppl_gen.report.pictures import draw_evaluation, draw_training

    fitted = run.fitted = prepared.assembled.within(run.directory)  # the cached value; nothing is loaded
    run.checkpoint, run.device = "last", fitted.config.training.device
    if not quiet:
        print(f"run: {run.path}\ndata: {_splits(fitted.data)}", flush=True)
    try:
        try:
            train(fitted, quiet=quiet, on_epoch=partial(_call_hooks, hooks, run))
        finally:
            thaw(fitted.model)
        with begun(f"training is done, and its weights are kept in {run.path}"):
            if (found := Evaluation.find(run.directory)) is None or not found.has_values:
                evaluate_after_training(fitted, quiet=quiet).write(run.directory)
            if run.directory.writes:
                draw_training(fitted)
                draw_evaluation(run.directory)
                write_report(run.directory)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"continue with: {continuing(run.path, fitted.config)}") from None
    except (Exception, SystemExit) as error:
        if kept(error):
            error.add_note(Kept(f"continue with: {continuing(run.path, fitted.config)}"))
        raise


def _keep(
    run: Run, name: str, find: Callable[[Fitted], Result], draw: Callable[[Fitted, Result], None] | None = None
) -> Result:
    """Find a result, while no other process writes to the run, and write it."""
    with run.directory.writing():
        found = find(_checked(run))
        _write(run, name, found, draw)
    return found


def _write(run: Run, name: str, found: Result, draw: Callable[[Fitted, Result], None] | None = None) -> None:
    """Write a result and its pictures to the run directory, and write its page again."""
    if draw is not None:
        draw(run.fitted, found)
    run.directory.write_json(name, found.summary)
    write_report(run.directory)


def _checked(run: Run) -> Fitted:
    """Model, guide and data, for results that are of the weights of the checkpoint. In a hook they are of the weights
    in training."""
    if not run.in_training:
        run.fitted.check_weights(run.checkpoint)
    return run.fitted


def _splits(data: Data) -> str:
    counts = f"{len(data.train)} / {len(data.validation)} / {len(data.test)}"
    return f"{data.name}, train / validation / test {counts} images{data.incomplete}"


def _call_hooks(hooks: Sequence[Hook], run: Run, metrics: Json) -> bool:
    """Call all hooks after an epoch. Returns True if any of them ends training."""
    with in_training(run, metrics["step"]):
        ended = [ends_training(hook, run, metrics) for hook in hooks]
        return any(ended)
