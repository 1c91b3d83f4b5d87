"""How torchrun has started this process, from the environment. Importing this imports no torch."""

import os

from ppl_gen.core.errors import BadInput, shown


def world_size() -> int:
    """Number of processes.

    :raises BadInput: for a value that torchrun does not set.
    """
    return number("WORLD_SIZE", 1)


def rank() -> int:
    """Number of this process, from 0.

    :raises BadInput: for a value that torchrun does not set.
    """
    found, size = number("RANK", 0), world_size()
    if found >= size > 1:
        raise BadInput(f"RANK={found}: must be below WORLD_SIZE, which is {size}")
    return found if size > 1 else 0


def local_rank() -> int:
    """Number of this process among those of its machine, from 0.

    :raises BadInput: for a value that torchrun does not set.
    """
    return number("LOCAL_RANK", 0)


def number(name: str, least: int) -> int:
    """A whole number in the environment, by default its least value.

    :raises BadInput: for anything else.
    """
    text = os.environ.get(name, str(least))
    try:
        found = int(text)
    except ValueError:
        found = least - 1
    if found < least:
        raise BadInput(
            f"{name}={shown(text)}: must be a whole number of at least {least}, as torchrun sets it; unset it for one "
            "process"
        )
    return found


def check() -> None:
    """Raise `BadInput` unless the environment has all that several processes need to meet."""
    size, _, _ = world_size(), rank(), local_rank()
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise BadInput(f"WORLD_SIZE={size}: {name} is not set; start several processes with torchrun")
    number("LOCAL_WORLD_SIZE", 1)
    number("MASTER_PORT", 0)
