"""Command lines that make a result again, from what was recorded with it."""

from collections.abc import Mapping
from typing import Any


def named_again(config: Mapping[str, Any]) -> list[str]:
    """The options that name again a run's classes from outside of the package.

    :param config: the content of the run's `config.json`.
    """
    kinds = [kind for kind in ("model", "guide", "prior") if ":" in str(config.get(kind))]
    return [word for kind in kinds for word in (f"--{kind}", config[kind])]
