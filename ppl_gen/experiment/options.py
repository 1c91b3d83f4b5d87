"""Options of training. Importing them imports no torch, so that what only reads runs starts fast."""

import math
from dataclasses import dataclass
from typing import Literal

from ppl_gen.core.errors import BadInput, require, require_choices
from ppl_gen.core.options import option

Checkpoint = Literal["last", "best"]
"""The weights after the last epoch, or after the epoch with the best validation ELBO."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to train."""

    epochs: int = option(20, column="epochs")
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step."""
    learning_rate: float = 1e-3
    """Of Adam, and of Muon in Adam's units; the peak of a schedule."""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """cosine: falls to 0; one-cycle: rises for 30 % of the steps, then falls to 0, both as a cosine."""
    optimizer: Literal["adam", "muon"] = "adam"
    """muon: steps along the matrix nearest to a weight matrix's momentum that is orthogonal, and Adam for what is no
    matrix (Jordan et al. 2024; `torch.optim.Muon`). Fewer epochs in larger batches, at more time a step."""
    adam_beta1: float = 0.9
    """Of Adam: the decay of its mean gradient."""
    clip_grad_norm: float | None = None
    """Scale gradients whose norm is larger down to this."""
    objective: str = option("elbo", column="objective")
    """elbo, elbo-analytic-kl, stl, beta, iwae, dreg, renyi; vimco, rws, wake-sleep for guides of discrete z, or any;
    adversarial; or file.py:Class."""
    num_particles: int = option(1, column="objective")
    """Samples of z per image in each step: K of iwae, dreg, renyi, vimco, rws, wake-sleep; the others average over
    them."""
    alpha: float | None = None
    """Order of the objective renyi; 0.5 by default."""
    beta: float | None = None
    """Weight of the KL term in the objective beta; 4 by default."""
    kl_warmup: int = option(0, column="objective")
    """Epochs over which the weight of the KL term rises from 0 to 1; 0: none."""
    seed: int = option(0, identifies=False, column="seeds")
    """Of weights, order of images and noise."""
    device: Literal["auto", "cpu", "cuda"] = option("auto", identifies=False)
    """auto: cuda where there is one."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of float32 matrix products in training: highest is float32; high and medium allow TF32 and bfloat16, where
    the hardware has them (on CPUs, medium alone: bfloat16). Evaluation always uses highest."""
    capture: bool = option(False, identifies=False)
    """Record the operations of a step once, and run them without Pyro and autograd: the same numbers but for rounding,
    in less time where layers are small. For pairs that do the same at every step; each epoch ends with a check."""
    checkpoint_every: int = option(1, identifies=False)
    """Epochs between checkpoints."""
    max_hours: float = option(24.0, identifies=False)
    """Refuse training by enumeration that is estimated to take longer."""
    patience: int | None = None
    """Stop when the validation ELBO has not risen above its best for this many epochs; by default never."""
    tensorboard: bool = option(False, identifies=False)
    """Write the curves for TensorBoard, into the run's tensorboard/."""

    def __post_init__(self) -> None:
        from ppl_gen.inference.objectives import check as check_objective

        require_choices(self)
        for name in ("epochs", "batch_size", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check_objective(self.objective, self.num_particles, self.alpha, self.beta)
        require(0 <= self.adam_beta1 < 1, "adam_beta1", self.adam_beta1, "must be at least 0 and below 1")
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "must be above 0")
        require(self.patience is None or self.patience >= 1, "patience", self.patience, "must be at least 1")
        require(self.kl_warmup >= 0, "kl_warmup", self.kl_warmup, "must be at least 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "must be at least 0 and below 2^63")
        if self.clip_grad_norm is not None:
            require(self.clip_grad_norm > 0, "clip_grad_norm", self.clip_grad_norm, "must be above 0")
        if self.optimizer == "muon":
            import torch

            if not hasattr(torch.optim, "Muon"):
                raise BadInput(f"--optimizer muon: torch {torch.__version__} has none; it came with torch 2.9")
        if self.capture and self.kl_warmup:
            raise BadInput(
                f"--capture: the loss must be the same at every step, and --kl-warmup {self.kl_warmup} is not"
            )
        require(0 < self.max_hours < math.inf, "max_hours", self.max_hours, "must be above 0, and finite")

    def rate(self, step: int, total: int) -> float:
        """Learning rate of step `step` of `total`."""
        done = step / total
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "one-cycle":
            rising = done < 0.3
            phase = done / 0.3 - 1 if rising else (done - 0.3) / 0.7
            low = 0.04 if rising else 0.0
            return self.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * phase)) / 2)
        return self.learning_rate
