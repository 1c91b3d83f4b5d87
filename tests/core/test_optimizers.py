"""Torch's optimizers without what prepares for its compiler."""

from typing import Any

import pytest
import torch
from torch import nn

from ppl_gen.core.optimizers import without_compiler


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adam, {"lr": 0.1, "fused": True}),
        (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1}),
        pytest.param(
            getattr(torch.optim, "Muon", None),
            {"lr": 0.1},
            marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9"),
        ),
    ],
)
def test_steps_are_those_of_torch(kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    """To the bit, also after a state is loaded, whichever of the two took a step first."""
    start = torch.randn(3, 4)
    ends = []
    for cls in (kind, without_compiler(kind), kind):
        weight, x = nn.Parameter(start.clone()), torch.arange(4.0)
        optimizer: Any = cls([weight], **options)
        for step in range(6):
            if step == 3:
                state = optimizer.state_dict()
                optimizer = cls([weight], **options)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            (weight @ x).square().sum().backward()
            optimizer.step()
        assert isinstance(optimizer, kind) and weight.requires_grad
        ends.append(weight.detach())
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2]) and not torch.equal(ends[0], start)
