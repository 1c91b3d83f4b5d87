"""The guide of the sigmoid belief net with several layers."""

from itertools import pairwise
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_gen.core.contracts import DiscreteLayers, missing, offers
from ppl_gen.core.errors import BadInput, require
from ppl_gen.guides.bernoulli import Baseline, learned_baseline
from ppl_gen.models.hierarchical_belief_net import layer_sizes, units
from ppl_gen.networks.autoregressive import AutoregressiveBernoulli
from ppl_gen.networks.nets import mlp


class HierarchicalBernoulli(nn.Module):
    """q(z_1 | x) q(z_2 | z_1) …, each a product of Bernoulli distributions whose log-odds are a network of the layer
    below: Mnih and Gregor (2014), section 2. Sizes, activation and categories are the model's, so that each network
    mirrors that of the model.

    With `autoregressive` each unit also depends on the units before it in its layer, as in Bornschein and Bengio
    (2015). Such a guide can represent units that explain each other away. Objectives that relax or flip single units
    need independent ones. It takes `rws`, `vimco`, `wake-sleep` and the score functions.

    Each layer has a baseline for the objective `elbo`, as in the guide `bernoulli` (section 2.3). Its input is the
    layer below.

    >>> from ppl_gen.models.hierarchical_belief_net import HierarchicalBeliefNet
    >>> guide = HierarchicalBernoulli(64, torch.full((64,), 0.5), HierarchicalBeliefNet(64, latent_dims=(5, 2)))
    >>> trace = pyro.poutine.trace(guide.guide).get_trace(torch.rand(3, 64))
    >>> trace.nodes["z1"]["value"].shape, trace.nodes["z2"]["value"].shape
    (torch.Size([3, 5]), torch.Size([3, 2]))

    :param data_mean: mean training pixel [data_dim], subtracted from the images.
    :param model: a `HierarchicalBeliefNet`, or any model with its `latent_dims`, `between_dims`,
        `activation` and `categories`.
    :param autoregressive: Let each binary unit depend on the units before it in its layer.
    :param baseline: Baseline of the score-function gradient. network: a learned function of the layer below. constant:
        one learned number. none: no baseline.
    :param baseline_dim: Hidden units of the baseline's network.
    """

    data_mean: Tensor

    def __init__(
        self,
        data_dim: int,
        data_mean: Tensor,
        model: nn.Module,
        *,
        autoregressive: bool = False,
        baseline: Baseline = "network",
        baseline_dim: int = 100,
    ):
        if not offers(model, DiscreteLayers):
            needed, who = missing(model, DiscreteLayers), type(model).__name__
            raise BadInput(f"the guide hierarchical-bernoulli needs a model with {needed}, but {who} has none")
        what = f"its units must be binary, but the model has {model.categories} categories"
        require(not autoregressive or model.categories == 2, "guide.autoregressive", autoregressive, what)
        super().__init__()
        self.register_buffer("data_mean", data_mean.clone(), persistent=False)
        self.categories = model.categories
        sizes = [data_dim, *layer_sizes(model.latent_dims, model.categories)]
        self.layers = nn.ModuleList(
            mlp([lower, *model.between_dims, upper], model.activation) for lower, upper in pairwise(sizes)
        )
        self.between = nn.ParameterList(torch.zeros(size, size) for size in (sizes[1:] if autoregressive else ()))
        made = [learned_baseline(baseline, lower, baseline_dim, scale=data_dim) for lower in sizes[:-1]]
        self.baselines = nn.ModuleList(each for each in made if each is not None)

    def guide(self, x: Tensor) -> None:
        """q(z_1, …, z_L | x) over a plate of images [images, data_dim]."""
        below = x - self.data_mean
        with pyro.plate("data", len(x)):
            for number, layer in enumerate(self.layers):
                infer: dict[str, Any] = {}
                if self.baselines:
                    infer["baseline"] = {"nn_baseline": self.baselines[number], "nn_baseline_input": below.detach()}
                logits = layer(below)
                if self.between:
                    q: Any = AutoregressiveBernoulli(logits, self.between[number])
                else:
                    q = units(logits, self.categories)
                z = pyro.sample(f"z{number + 1}", q, infer=infer)
                below = z if self.categories == 2 else z.flatten(-2)
