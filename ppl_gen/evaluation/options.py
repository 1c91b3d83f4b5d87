"""Options of an evaluation."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ppl_gen.core.errors import BadInput, require, require_choices, require_least
from ppl_gen.data.options import SplitName
from ppl_gen.experiment.options import Checkpoint
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.annealed import Annealing
from ppl_gen.inference.quadrature import Quadrature
from ppl_gen.inference.settling import Settling


@dataclass(frozen=True)
class EvaluationOptions:
    """The images and the estimators."""

    split: SplitName = "test"
    """Split to evaluate."""
    num_images: int | None = None
    """Number of images: the first N of the split. By default all."""
    num_samples: Literal["auto"] | int | None = None
    """Importance samples of z per image. By default as many as after training. Papers often use 5000. auto: log p(x) of
    each image has as many as --settling.tolerance takes; ELBO and IWAE bounds have as many as after training."""
    estimator: Literal["auto", "exact", "quadrature", "importance", "annealed", "prior"] = "auto"
    """Estimator of log p(x). auto: exact if every latent value can be enumerated or there is a closed form; else
    quadrature if z has 1 to 3 continuous units and importance sampling would not be faster; else importance.
    quadrature: a sum over a grid of z, which is refined until log p(x) of every image settles. importance: importance
    sampling from the guide. annealed: annealed importance sampling, which needs no guide. prior: importance sampling
    from the prior. Other estimates that are available are reported as well."""
    prior_share: float = 0.0
    """Share of the importance samples to draw from the prior instead of the guide."""
    temperature: float = 1.0
    """Factor that spreads the importance samples about the guide's mean. Below 1 it draws them together."""
    proposals: tuple[Path, ...] = ()
    """Further runs whose guides draw a part of the importance samples. They must be of the same model, as --refit-guide
    makes them."""
    proposal_guides: tuple[str, ...] = ()
    """file.py:Class of guides of --proposals that are your own and differ from this run's guide."""
    settling: Settling = field(default_factory=Settling)
    quadrature: Quadrature = field(default_factory=Quadrature)
    annealed: Annealing = field(default_factory=Annealing)
    sandwich: int | None = None
    """Number of images to draw from the model. Their log p(x) is bounded from below and above, by the guide's
    importance samples and, with --estimator annealed, by annealing with the same settings. By default 100 with
    --estimator annealed, else none."""
    checkpoint: Checkpoint = "last"
    """Weights to use. last: after the last epoch. best: after the epoch with the best validation ELBO."""
    further: tuple[str, ...] = ()
    """file.py:function of further estimators, your own. Each is called with model, guide and images, and with labels if
    model or guide take them, and returns a ppl_gen.Estimate. The estimates are reported with the others."""
    gaps: bool = False
    """Split log p(x) - ELBO into approximation and amortization gap instead of evaluating, and write gaps.json. By
    default on 100 images with 5000 samples. The search over contexts stays in the encoder's mode of p(z|x); gaps.json
    says on which images samples of the prior find another mode. With --estimator annealed, the annealed log p(x) is
    used where it is the larger."""
    gap_copies: int = 3
    """Number of images whose gaps are also split with a copy of the guide's weights for each image. This takes a guide
    whose posterior(context) has weights of its own, such as a flow."""
    seed: int = 0
    """Seed of the samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on. auto: cuda if there is one, else cpu."""

    def __post_init__(self) -> None:
        require_choices(self)
        require_least(self, num_images=1, sandwich=0, gap_copies=0)
        if self.num_samples != "auto":
            require_least(self, num_samples=1)
            if self.settling != Settling():
                raise BadInput("--settling.*: needs --num-samples auto")
        elif self.gaps or self.mixes or self.estimator in ("annealed", "prior"):
            raise BadInput(
                "--num-samples auto: leave out --gaps, --estimator annealed or prior, --prior-share, --temperature and "
                "--proposals"
            )
        require(0 <= self.prior_share <= 1, "prior_share", self.prior_share, "must be from 0 to 1")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "must be a number above 0")
        if self.estimator != "annealed" and self.annealed != Annealing():
            raise BadInput(f"--estimator {self.estimator}: --annealed.* need --estimator annealed")
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
        texts["further"] = list(self.further)
        return asdict(self) | texts
