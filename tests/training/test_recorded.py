"""Which steps are recorded as a CUDA graph. What the graphs compute is tested where there is a GPU
(test_cuda_steps.py)."""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_gen.inference.objectives import construct
from ppl_gen.training.recorded import RecordedGradient, may_be_recorded


class _Own(nn.Linear):
    pass


def test_code_of_a_user_is_not_recorded() -> None:
    def own(x: Any) -> None: ...

    known = nn.Sequential(nn.Linear(2, 2))
    assert may_be_recorded(known, known, construct("iwae", num_particles=2))
    for part in (_Own(2, 2), nn.Sequential(_Own(2, 2)), own, object()):
        assert not may_be_recorded(known, part)


def test_without_a_gpu_each_step_is_computed() -> None:
    """And the last, smaller batch of an epoch, and all batches after `stop`."""
    net, computed = nn.Linear(3, 1), list[int]()

    def usual(model: Any, guide: Any, x: Tensor) -> Tensor:
        computed.append(len(x))
        return net(x).sum()

    gradient = RecordedGradient(usual, net, usual)
    for count in (5, 5, 2):
        x = torch.ones(count, 3)
        torch.testing.assert_close(gradient(None, None, x), net(x).sum())
    gradient.stop()
    gradient(None, None, torch.ones(4, 3))
    assert computed == [5, 5, 2, 4] and gradient.graph is None
