"""Gradients where they were turned off."""

import pytest
import torch

from ppl_gen.core.errors import BadInput
from ppl_gen.core.gradients import gradients


def test_gradients_are_recorded_or_refused() -> None:
    @gradients("squaring")
    def slope() -> float:
        x = torch.ones((), requires_grad=True)
        return float(torch.autograd.grad(x.square(), x)[0])

    assert slope() == 2
    with torch.no_grad():
        assert slope() == 2 and not torch.is_grad_enabled()
    with (
        torch.inference_mode(),
        pytest.raises(BadInput, match=r"^squaring needs gradients, but torch.inference_mode\(\) forbids them"),
    ):
        slope()
