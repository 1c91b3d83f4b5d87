"""Steps of the optimizers, given the gradients."""

import pytest
import torch
from fits import small_config
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.training.optimizer import OneOptimizer


def test_clipping_bounds_the_gradient(data: Data) -> None:
    model, guide = assemble(small_config(), data)
    parameters = [*model.parameters(), *guide.parameters()]
    optimizer = OneOptimizer(parameters, TrainingOptions(clip_grad_norm=0.5))
    norms: list[Tensor] = []
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    step = optimizer.parts["adam"].step
    optimizer.parts["adam"].step = lambda: norms.append(nn.utils.get_total_norm([p.grad for p in parameters])) or step()  # type: ignore[assignment,func-returns-value,misc]
    optimizer(set())
    assert norms[0].item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("bfloat16", [True, False])
def test_muon_steps_along_orthogonal_matrices_and_adam_along_the_rest(
    bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step: singular values near 1 (0.68 to 1.2 by five iterations of Newton and Schulz) times 0.2 lr times
    the root of the longer side, whatever the gradient's; and Adam's, the rate times the sign. In float32 on processors
    without products of bfloat16."""
    monkeypatch.setattr("ppl_gen.training.optimizer._multiplies_bfloat16", lambda: bfloat16)
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.zeros(8, 5)), nn.Parameter(torch.zeros(6))
    optimizer = OneOptimizer([matrix, vector], TrainingOptions(optimizer="muon", learning_rate=0.1))
    matrix.grad, vector.grad = torch.randn(8, 5) @ torch.diag(torch.tensor([9.0, 3, 1, 1, 0.5])), torch.randn(6)
    sign = vector.grad.sign()
    optimizer(set())
    sizes = torch.linalg.svdvals(matrix) / (0.1 * 0.2 * 8**0.5)
    assert sizes.min() > 0.6 and sizes.max() < 1.3
    torch.testing.assert_close(vector.detach(), -0.1 * sign)
    assert matrix.grad is None and vector.grad is None


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_weight_decay_shrinks_matrices_alone(optimizer: str) -> None:
    """Of a gradient of 0, the step of both optimizers is 0. What is left is p - lr decay p."""
    matrix, vector, scale = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(()))
    options = TrainingOptions(optimizer=optimizer, learning_rate=0.1, weight_decay=0.2)  # type: ignore[arg-type]
    steps = OneOptimizer([vector, matrix, scale], options)
    for each in (matrix, vector, scale):
        each.grad = torch.zeros_like(each)
    steps(set())
    torch.testing.assert_close(matrix.detach(), torch.full((4, 3), 0.98))
    assert vector.detach().tolist() == [1.0] * 6 and scale.item() == 1.0
    with pytest.raises(BadInput, match="weight_decay -1: must be at least 0"):
        TrainingOptions(weight_decay=-1)
