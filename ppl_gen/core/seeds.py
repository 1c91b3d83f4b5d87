"""The seed of torch's generators."""

import torch


def seed_torch(number: int) -> None:
    """Seed torch's generators, of the CPU and of GPUs, as `torch.manual_seed` does. Without a GPU that takes 100 times
    as long: it notes three call stacks, for devices that may be found later.

    >>> seed_torch(0)
    >>> torch.rand(2)
    tensor([0.4963, 0.7682])
    """
    if torch.cuda.is_available():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)
