"""Gradients, also where a user has turned them off."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ppl_gen.core.errors import BadInput


def check_gradients(what: str) -> None:
    """Raise `BadInput` within `torch.inference_mode()`, whose tensors cannot have gradients."""
    if torch.is_inference_mode_enabled():
        raise BadInput(
            f"{what} needs gradients, but torch.inference_mode() forbids them: leave it, or use torch.no_grad()"
        )


@contextmanager
def gradients(what: str) -> Iterator[None]:
    """Context, or decorator, in which gradients are recorded, also within `torch.no_grad()`.

    :param what: the work that takes them, for the message.
    :raises BadInput: within `torch.inference_mode()`.
    """
    check_gradients(what)
    with torch.enable_grad():
        yield
