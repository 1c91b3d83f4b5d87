"""The options of an evaluation."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ppl_gen.core.errors import BadInput, require, require_choices
from ppl_gen.data.options import SplitName
from ppl_gen.experiment.options import Checkpoint
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.annealed import Annealing


@dataclass(frozen=True)
class EvaluationOptions:
    """The estimators, and the images."""

    split: SplitName = "test"
    """Images to evaluate."""
    num_images: int | None = None
    """Evaluate the first N images of the split; all by default."""
    num_samples: int | None = None
    """Importance samples of z per image; by default as many as after training. The literature's is 5000."""
    estimator: Literal["auto", "exact", "importance", "annealed", "prior"] = "auto"
    """Estimator of log p(x). auto: exact where every latent value can be enumerated or there is a closed form, else
    importance. annealed: annealed importance sampling, which needs no guide. prior: importance sampling from the prior.
    The other estimates that there are stand beside it."""
    prior_share: float = 0.0
    """Share of the importance samples that is drawn from the prior in place of the guide."""
    temperature: float = 1.0
    """Factor by which importance samples are spread about the guide's mean; below 1 they are drawn together."""
    proposals: tuple[Path, ...] = ()
    """Further runs whose guides share the importance samples with this run's guide. They are of the same model, as
    --refit-guide makes them."""
    proposal_guides: tuple[str, ...] = ()
    """file.py:Class of the guides of --proposals, again, that are your own and not this run's."""
    annealed: Annealing = field(default_factory=Annealing)
    sandwich: int = 100
    """With --estimator annealed: images drawn from the model, whose log p(x) is bounded from both sides with the same
    settings; 0 for none."""
    checkpoint: Checkpoint = "last"
    """The last weights, or those of the epoch with the best validation ELBO."""
    further: tuple[str, ...] = ()
    """file.py:function of further estimators, your own. Each is called with model, guide and images, and with labels
    if model or guide take them. It returns a ppl_gen.Estimate, which stands beside the others."""
    gaps: bool = False
    """Split log p(x) - ELBO into approximation and amortization gap instead, and write gaps.json. By default on 100
    images and with 5000 samples. The search of contexts stays in the encoder's mode of p(z|x); gaps.json says where
    samples of the prior find more elsewhere. With --estimator annealed, log p(x) is annealed where that is the
    larger."""
    gap_copies: int = 3
    """Images whose gaps are also split with a copy, for each, of the weights of the guide. It takes a guide whose
    posterior(context) has weights of its own, such as a flow."""
    seed: int = 0
    """Seed of the samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("num_images", "num_samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "must be at least 1")
        require(0 <= self.prior_share <= 1, "prior_share", self.prior_share, "must be from 0 to 1")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "must be a number above 0")
        require(self.sandwich >= 0, "sandwich", self.sandwich, "must be at least 0")
        if self.estimator != "annealed" and (self.annealed != Annealing() or self.sandwich != 100):
            raise BadInput(f"--estimator {self.estimator}: --annealed.* and --sandwich are of --estimator annealed")
        if self.mixes and self.estimator not in ("auto", "importance"):
            raise BadInput(
                f"--estimator {self.estimator}: --prior-share, --temperature and --proposals are of importance sampling"
            )
        if self.prior_share == 1 and (self.proposals or self.temperature != 1):
            raise BadInput("--prior-share 1: leaves no sample for --proposals, or to spread by --temperature")
        if self.proposal_guides and not self.proposals:
            raise BadInput("--proposal-guides: are of --proposals")
        require(self.gap_copies >= 0, "gap_copies", self.gap_copies, "must be at least 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "must be at least 0 and below 2^63")

    @property
    def mixes(self) -> bool:
        """True if the importance samples are to come from more than the guide."""
        return self.prior_share > 0 or self.temperature != 1 or bool(self.proposals)

    def proposal(self) -> Json:
        """The distributions that importance samples are drawn from, for the record."""
        return {
            "prior_share": self.prior_share,
            "temperature": self.temperature,
            "guides": [] if self.prior_share == 1 else ["own", *map(str, self.proposals)],
            **({"named": list(self.proposal_guides)} if self.proposal_guides else {}),
        }

    def to_json(self) -> Json:
        """Every option as JSON has it: paths are text, and tuples lists."""
        texts = {"proposals": [str(path) for path in self.proposals], "proposal_guides": list(self.proposal_guides)}
        texts["further"] = list(self.further)
        return asdict(self) | texts
