"""Options of training. Importing them imports no torch, so that commands that only read runs start fast."""

import math
from dataclasses import dataclass
from typing import Literal

from ppl_gen.core.errors import BadInput, require, require_choices, require_numbers
from ppl_gen.core.options import option

Checkpoint = Literal["last", "best"]
"""`last`: the weights after the last epoch; `best`: those after the epoch with the best validation ELBO."""


@dataclass(frozen=True)
class TrainingOptions:
    """Options of training."""

    epochs: int = option(20, column="epochs")
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step."""
    learning_rate: float = 1e-3
    """Learning rate. With a schedule it is the highest value. Muon uses the same units as Adam."""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """Schedule of the learning rate. constant: no change. cosine: falls to 0. one-cycle: rises for 30 % of the steps,
    then falls to 0, both as a cosine."""
    optimizer: Literal["adam", "muon"] = "adam"
    """Optimizer. adam: Adam for all parameters. muon: for weight matrices, step along the orthogonal matrix nearest to
    the momentum; Adam for the rest (Jordan et al. 2024; `torch.optim.Muon`). muon needs fewer epochs with large
    batches, and more time for a step."""
    adam_beta1: float = 0.9
    """Decay of Adam's mean of the gradient."""
    weight_decay: float = 0.0
    """Decoupled weight decay (Loshchilov and Hutter 2019): each step shrinks weight matrices by this times the learning
    rate, whatever their gradients."""
    clip_grad_norm: float | None = None
    """Largest norm of a gradient. A longer gradient is scaled down to this norm. By default there is no limit."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999. This average is then measured, evaluated,
    and saved as last and best. By default there is none."""
    objective: str = option("elbo", column="objective")
    """Training objective. For any guide that is reparametrized: elbo, elbo-analytic-kl, stl, beta, iwae, miwae, piwae,
    ciwae, dreg, renyi. Also for discrete z: vimco, rws, wake-sleep, rloo, nvil. For discrete z alone: disarm, arm,
    muprop, rebar, relax, reinmax, straight-through, straight-through-gumbel, gumbel-softmax, concrete. For a GAN:
    adversarial. Your own: file.py:Class."""
    num_particles: int = option(1, column="objective")
    """Samples of z per image in each step, K. iwae, dreg, renyi, vimco, rws and wake-sleep combine them in one bound,
    miwae, piwae and ciwae in bounds of groups or of single samples. The other objectives average over them."""
    alpha: float | None = None
    """Order of the Rényi bound, for the objective renyi. By default 0.5."""
    beta: float | None = None
    """Weight of the KL term, for the objective beta; by default 4. Weight of the ELBO, for the objective ciwae; by
    default 0.5."""
    labelled_share: float | None = None
    """Share of each batch that has labels, if --labelled hides those of other images. Labelled images are repeated in
    an epoch. By default they are as rare in a batch as among all images."""
    kl_warmup: int = option(0, column="objective")
    """Epochs over which the weight of the KL term rises from 0 to 1. 0: no warm-up."""
    seed: int = option(0, identifies=False, column="seeds")
    """Seed of the initial weights, the order of the images and the noise."""
    device: Literal["auto", "cpu", "cuda"] = option("auto", identifies=False)
    """Device to train on. auto: cuda if there is one, else cpu."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of float32 matrix products in training. highest: float32. high, medium: TF32 or bfloat16 if the
    hardware has them; on CPUs only medium changes anything (bfloat16). Evaluation always uses highest."""
    checkpoint_every: int = option(1, identifies=False)
    """Epochs between checkpoints."""
    max_hours: float = option(24.0, identifies=False)
    """Longest time, in hours, that training by enumeration may take by estimate. A longer training is refused."""
    patience: int | None = None
    """Stop training if the validation ELBO has reached no new best value for this many epochs. By default training
    never stops early."""
    tensorboard: bool = option(False, identifies=False)
    """Write the learning curves for TensorBoard, to tensorboard/ in the run directory."""

    def __post_init__(self) -> None:
        from ppl_gen.inference.objectives import check as check_objective

        require_choices(self)
        require_numbers(self, epochs=1, batch_size=1, checkpoint_every=1, patience=1, kl_warmup=0)
        check_objective(self.objective, self.num_particles, self.alpha, self.beta)
        require(0 <= self.adam_beta1 < 1, "adam_beta1", self.adam_beta1, "must be at least 0 and below 1")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "must be above 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "must be at least 0")
        if self.clip_grad_norm is not None:
            require(self.clip_grad_norm > 0, "clip_grad_norm", self.clip_grad_norm, "must be above 0")
        if self.ema_decay is not None:
            require(0 < self.ema_decay < 1, "ema_decay", self.ema_decay, "must be above 0 and below 1")
        if self.optimizer == "muon":
            import torch

            if not hasattr(torch.optim, "Muon"):
                raise BadInput(f"--optimizer muon: torch {torch.__version__} has no Muon; upgrade to torch 2.9")
        share = self.labelled_share
        require(share is None or 0 < share < 1, "labelled_share", share, "must be above 0 and below 1")
        require(self.max_hours > 0, "max_hours", self.max_hours, "must be above 0")

    def rate(self, step: int, total: int) -> float:
        """Learning rate of step `step` out of `total`."""
        done = step / total
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "one-cycle":
            rising = done < 0.3
            phase = done / 0.3 - 1 if rising else (done - 0.3) / 0.7
            low = 0.04 if rising else 0.0
            return self.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * phase)) / 2)
        return self.learning_rate
