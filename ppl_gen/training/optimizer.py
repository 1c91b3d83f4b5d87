"""The optimizer of a run, behind Pyro's interface."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import nn
from torch.overrides import TorchFunctionMode

from ppl_gen.core.optimizers import without_compiler
from ppl_gen.experiment.options import TrainingOptions


class OneOptimizer(PyroOptim):
    """One fused optimizer over all parameters, where Pyro would make one per parameter. With Muon there are two, one
    for matrices and one for the rest.

    SVI passes the parameters as a set, whose order varies between processes. Therefore the optimizer is built once,
    from the modules' named parameters.

    :param parameters: parameters in the order of their names.
    """

    def __init__(self, parameters: list[nn.Parameter], options: TrainingOptions):
        self.parameters = parameters
        self.clip_grad_norm = options.clip_grad_norm
        self.parts: dict[str, torch.optim.Optimizer] = {}
        matrix = [options.optimizer == "muon" and p.dim() == 2 for p in parameters]
        slow = bool(parameters) and parameters[0].device.type == "cpu" and not _multiplies_bfloat16()
        self.products: AbstractContextManager[Any] = _InFloat32() if slow else nullcontext()
        if matrices := [p for p, yes in zip(parameters, matrix, strict=True) if yes]:
            # Steps as long as Adam's, so that one learning rate serves both (Liu et al. 2025, equation 4).
            self.parts["muon"] = without_compiler(torch.optim.Muon)(
                matrices,
                lr=options.learning_rate,
                weight_decay=options.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        if others := [p for p, yes in zip(parameters, matrix, strict=True) if not yes]:
            kind: Any = torch.optim.AdamW if options.weight_decay else torch.optim.Adam
            # Biases and other vectors are not decayed.
            decay = [options.weight_decay * (p.dim() >= 2) for p in others]
            groups = [
                {"params": [p for p, own in zip(others, decay, strict=True) if own == each], "weight_decay": each}
                for each in sorted({*decay})
            ]
            self.parts["adam"] = without_compiler(kind)(
                groups, lr=options.learning_rate, betas=(options.adam_beta1, 0.999), fused=True
            )

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = rate

    def state_of(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """What the optimizer remembers of a parameter's gradients."""
        states = [part.state.get(parameter, {}) for part in self.parts.values()]
        return [each for state in states for each in state.values() if isinstance(each, torch.Tensor)]

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Take a step along the gradients that the parameters have, and clear them."""
        if self.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_grad_norm)
        for name, part in self.parts.items():
            with self.products if name == "muon" else nullcontext():
                part.step()
        for parameter in self.parameters:
            parameter.grad = None


@cache
def _multiplies_bfloat16() -> bool:
    """True if this processor has instructions for products of bfloat16 numbers. Without them torch takes hundreds of
    times as long as for float32."""
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


class _InFloat32(TorchFunctionMode):
    """Leaves numbers in float32 that code would round to bfloat16, as `torch.optim.Muon` does before its products.

    >>> with _InFloat32():
    ...     torch.ones(2).bfloat16().dtype
    torch.float32
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.bfloat16:
            return args[0].clone()  # which the code may change in place
        return func(*args, **(kwargs or {}))
