"""Options of an evaluation. Importing them imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ppl_gen.core.components import is_external
from ppl_gen.core.errors import BadInput, require, require_choice, require_choices, require_numbers
from ppl_gen.data.options import SplitName
from ppl_gen.evaluation.use_options import IN_PYTHON, options_from
from ppl_gen.experiment.options import Checkpoint
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.options import Annealing, Quadrature, Settling

EstimatorName = Literal["auto", "exact", "quadrature", "importance", "annealed", "prior"]


@dataclass(frozen=True)
class EvaluationOptions:
    """The images and the estimators."""

    split: SplitName = "test"
    """Split to evaluate."""
    num_images: int | None = None
    """Number of images: the first N of the split. By default all."""
    num_samples: Literal["auto"] | int | None = None
    """Importance samples of z per image. By default as many as after training. Papers often use 5000. auto: each image
    takes as many samples for log p(x) as --settling.tolerance needs; the ELBO and the IWAE bounds use as many as after
    training."""
    estimator: Annotated[
        str | tuple[str, ...], tyro.conf.arg(metavar="{auto,exact,quadrature,importance,annealed,prior} FILE.py:NAME …")
    ] = "auto"
    """Estimator of log p(x). auto: the first of exact, quadrature and importance that the pair allows. exact: a sum
    over every latent value, or a closed form. quadrature: a sum over a grid of z, refined until log p(x) of every image
    settles; for 1 to 3 continuous units, and with auto only if importance sampling would not be faster. importance:
    importance sampling from the guide. annealed: annealed importance sampling, which needs no guide. prior: importance
    sampling from the prior. The evaluation reports the other available estimates too. file.py:Class or
    file.py:function: an estimator of your own, which is reported beside the others; you can give several, after a name
    of the package or without one. Options of its constructor are --estimator.NAME."""
    own_estimators: Annotated[tuple[str, ...], *IN_PYTHON] = ()
    """The estimators of the user's own in `estimator`, which then keeps the name of the package."""
    estimator_options: Annotated[Mapping[str, Any], *IN_PYTHON] = field(default_factory=dict)
    """Options of the constructors of the user's own estimators."""
    prior_share: float = 0.0
    """Share of the importance samples that come from the prior instead of the guide."""
    temperature: float = 1.0
    """Multiply the spread of the guide's samples: above 1 wider, below 1 narrower."""
    proposals: tuple[Path, ...] = ()
    """Other runs of the same model, as --refit-guide makes them. Their guides draw a part of the importance samples."""
    proposal_guides: tuple[str, ...] = ()
    """file.py:Class of your own guides in --proposals that differ from this run's guide."""
    settling: Settling = field(default_factory=Settling)
    quadrature: Quadrature = field(default_factory=Quadrature)
    annealed: Annealing = field(default_factory=Annealing)
    sandwich: int | None = None
    """Number of images to draw from the model for bounds from both sides: a lower and an upper bound of their log p(x).
    The guide's importance samples give both bounds. With --estimator annealed, annealing with the same settings gives
    two more. By default 100 with --estimator annealed, else 0."""
    checkpoint: Checkpoint = "last"
    """Weights to use. last: after the last epoch. best: after the epoch with the best validation ELBO."""
    gaps: bool = False
    """Split log p(x) - ELBO into approximation and amortization gap, and write gaps.json; do not evaluate. By default
    this takes 100 images with 5000 samples. The search over contexts stays in the encoder's mode of p(z|x); gaps.json
    says on which images samples of the prior find another mode. With --estimator annealed, the gap uses annealed log
    p(x) if it is larger."""
    gap_copies: int = 3
    """Number of images that are also split with a copy of the guide's weights for each image. The guide's
    posterior(context) must have weights, as a flow has."""
    seed: int = 0
    """Seed of the samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on. auto: cuda if there is one, else cpu."""

    def __post_init__(self) -> None:
        names = (self.estimator,) if isinstance(self.estimator, str) else self.estimator
        own = tuple(name for name in names if is_external(name))
        of_package = [name for name in names if name not in own]
        for name in of_package:
            require_choice("estimator", name, EstimatorName)
        require(len(of_package) <= 1, "estimator", " ".join(of_package), "one name of the package at most")
        object.__setattr__(self, "estimator", of_package[0] if of_package else "auto")
        object.__setattr__(self, "own_estimators", (*self.own_estimators, *own))
        require_choices(self)
        require_numbers(self, num_images=1, sandwich=0, gap_copies=0)
        if self.num_samples != "auto":
            require(
                self.num_samples is None or self.num_samples >= 1, "num_samples", self.num_samples, "must be at least 1"
            )
            if self.settling != Settling():
                raise BadInput("--settling.*: needs --num-samples auto")
        elif self.gaps or self.mixes or self.estimator in ("annealed", "prior"):
            raise BadInput(
                "--num-samples auto: leave out --gaps, --estimator annealed or prior, --prior-share, --temperature and "
                "--proposals"
            )
        require(0 <= self.prior_share <= 1, "prior_share", self.prior_share, "must be from 0 to 1")
        require(self.temperature > 0, "temperature", self.temperature, "must be above 0")
        if self.estimator != "annealed" and self.annealed != Annealing():
            raise BadInput(f"--estimator {self.estimator}: --annealed.* need --estimator annealed")
        if self.gaps and self.own_estimators:
            raise BadInput(
                f"--gaps: leave out --estimator {self.own_estimators[0]}; evaluate again with it, without --gaps"
            )
        if self.gaps and self.sandwich:
            raise BadInput(f"--gaps: leave out --sandwich {self.sandwich}; evaluate again for it, without --gaps")
        if self.mixes and self.estimator not in ("auto", "importance"):
            raise BadInput(
                f"--estimator {self.estimator}: --prior-share, --temperature and --proposals need importance sampling"
            )
        if self.prior_share == 1 and (self.proposals or self.temperature != 1):
            raise BadInput("--prior-share 1: all samples are from the prior; leave out --proposals and --temperature")
        if self.proposal_guides and not self.proposals:
            raise BadInput("--proposal-guides: needs --proposals")

    @property
    def mixes(self) -> bool:
        """Mixed proposals: True if importance samples come from more than the guide."""
        return self.prior_share > 0 or self.temperature != 1 or bool(self.proposals)

    @property
    def num_from_model(self) -> int:
        """Number of images to draw from the model: `sandwich` with its default filled in."""
        if self.sandwich is None:
            return 100 if self.estimator == "annealed" else 0
        return self.sandwich

    def proposal(self) -> Json:
        """The entry `proposal` of a result: the distributions that the importance samples are drawn from."""
        return {
            "prior_share": self.prior_share,
            "temperature": self.temperature,
            "guides": [] if self.prior_share == 1 else ["own", *map(str, self.proposals)],
            **({"named": list(self.proposal_guides)} if self.proposal_guides else {}),
        }

    def to_json(self) -> Json:
        """Every option as JSON has it: paths as text, and tuples as lists."""
        texts = {"proposals": [str(path) for path in self.proposals], "proposal_guides": list(self.proposal_guides)}
        options: Json = asdict(self) | texts
        own = list(options.pop("own_estimators"))
        return options | ({"estimator": [self.estimator, *own]} if own else {})


def evaluation_options(
    options: EvaluationOptions | None, chosen: Mapping[str, Any], checkpoint: Checkpoint
) -> EvaluationOptions:
    """The options of an evaluation of a run that was opened with the weights of a checkpoint.

    :raises BadInput: for options of other weights.
    """
    if options is None:
        options = EvaluationOptions(checkpoint=checkpoint)
    options = options_from(EvaluationOptions, options, chosen)
    if options.checkpoint != checkpoint:
        raise BadInput(
            f"--checkpoint {options.checkpoint}: this run was opened with its {checkpoint} weights; open it again with "
            f"checkpoint='{options.checkpoint}'"
        )
    return options
