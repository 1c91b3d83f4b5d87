"""Every family of guides of a continuous latent, each with a small VAE."""

from typing import Any

import torch
from torch import Tensor

from ppl_gen.core.components import construct, find
from ppl_gen.models.vae import VAE

FLOW = {"num_transforms": 2, "transform_dims": (16,), "num_features": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "normal": ("normal", {}),
    "full": ("multivariate-normal", {}),
    "low-rank": ("multivariate-normal", {"rank": 1}),
    "student-t": ("student-t", {"df": 4.0}),
    "mixture": ("mixture", {"num_components": 3}),
    "iaf": ("flow", {"transform": "iaf", **FLOW}),
    "spline": ("flow", {"transform": "spline", **FLOW}),
    "spline-coupling": ("flow", {"transform": "spline-coupling", **FLOW}),
    "planar": ("flow", {"transform": "planar", "num_transforms": 3}),
    "semi-amortized": ("semi-amortized", {}),
}
PIXELS = 12


def make(family: str, latent_dim: int, seed: int = 0) -> tuple[VAE, Any]:
    """A small VAE and a guide with distinct parameters, in float64."""
    torch.manual_seed(seed)
    name, chosen = FAMILIES[family]
    model = VAE((PIXELS,), latent_dim=latent_dim, hidden_dims=(8,), activation="tanh").double()
    supplied = {"data_shape": (PIXELS,), "latent_dim": latent_dim, "latent_name": "z", "model": model}
    guide = construct("guide", find("guide", name), supplied, chosen).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.mul_(1.5)
    return model, guide


def images(count: int) -> Tensor:
    return torch.randint(2, (count, PIXELS)).double()
