"""The guide of a semi-supervised model: a classifier, and a diagonal Gaussian for each class."""

from typing import Unpack

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.util import broadcast_shape
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput, require
from ppl_gen.networks.nets import EncoderOptions, draw_weights, mirrored_encoder


class SemiSupervised(nn.Module):
    """q(y | x) = Categorical(classifier(x)) and q(z | x, y) = N(mu(x, y), diag sigma(x, y)^2), for the model
    `semi-supervised-vae`: Kingma et al. (2014), equation 4.

    The guide enumerates y: the ELBO is a sum over classes, with a z for each (equation 7). If a label is known,
    q(y | x) is certain of it. The loss of the classifier on these images, - alpha log q(y | x), is a factor of the
    guide (equation 9). It takes part in training alone, and is left out of q.

    >>> from ppl_gen.models.semi_supervised_vae import SemiSupervisedVAE
    >>> guide = SemiSupervised(64, 2, "z", 10, SemiSupervisedVAE(64, 10, latent_dim=2))
    >>> guide.classify(torch.rand(5, 64))
    Categorical(logits: torch.Size([5, 10]))

    :param num_classes: number of classes; labels are 0 … num_classes - 1.
    :param labelled_share: share of the images of a training batch whose label is known.
    :param alpha: Weight of the classifier's loss: this number, divided by the share of images with a label.
    :param init_scale: Standard deviation of the weights before training.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        latent_name: str,
        num_classes: int | None,
        model: nn.Module,
        labelled_share: float = 1.0,
        *,
        alpha: float = 10.0,
        init_scale: float = 0.01,
        **options: Unpack[EncoderOptions],
    ):
        require(alpha >= 0, "guide.alpha", alpha, "must be at least 0")
        require(init_scale >= 0, "guide.init_scale", init_scale, "must be at least 0")
        if num_classes is None:
            raise BadInput("the guide semi-supervised needs images with labels 0, 1, 2, …; these have none")
        super().__init__()
        self.latent_name, self.num_classes = latent_name, num_classes
        self.weight = alpha / labelled_share if labelled_share else 0.0
        self.classifier = mirrored_encoder(model, (data_dim,), num_classes, **options)
        self.encoder = mirrored_encoder(model, (data_dim + num_classes,), 2 * latent_dim, **options)
        for net in (self.classifier, self.encoder):
            draw_weights(net, init_scale)

    def classify(self, x: Tensor) -> dist.Categorical:
        """q(y | x) of images whose label is unknown."""
        return dist.Categorical(logits=self.classifier(x))

    def posterior(self, x: Tensor, label: Tensor) -> dist.TorchDistribution:
        """q(z | x, y), event [latent_dim]."""
        code = F.one_hot(label.long(), self.num_classes).to(x.dtype)
        shape = broadcast_shape(x.shape[:-1], code.shape[:-1])
        inputs = torch.cat([x.expand(*shape, -1), code.expand(*shape, -1)], -1)
        loc, log_scale = self.encoder(inputs).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """q(y, z | x) over a plate of images [images, data_dim], with labels [images], -1 where unknown."""
        with pyro.plate("data", len(x)):
            logits = self.classify(x).logits
            if y is not None:
                known, certain = y >= 0, F.one_hot(y.clamp(min=0), self.num_classes).bool()
                own = logits[torch.arange(len(y), device=y.device), y.clamp(min=0)]
                # Training subtracts the factors of a guide, as it does log q.
                pyro.factor("classification", torch.where(known, -self.weight * own, 0.0), has_rsample=False)
                logits = torch.where(known.unsqueeze(-1) & ~certain, -torch.inf, logits)
            label = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample(self.latent_name, self.posterior(x, label))
