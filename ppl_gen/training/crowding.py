"""A warning where other programs slow training down.

Threads of torch wait for each other many times in a step, and use their cores meanwhile. If one of them has no core, as
on a busy machine, all wait for it. The processor time of the process does not show this, because it includes such
waiting. Linux counts the time for which a thread could run and had no core.
"""

from collections.abc import Callable
from pathlib import Path

_SLOWER = 10.0
"""Least ratio of a step's time to that of the fastest steps before."""
_SHARE = 0.6
"""Largest ratio of the time for which threads run to that for which they could."""
_WINDOW = 2.0
"""Least seconds of steps between two looks."""


def scheduled() -> tuple[float, float] | None:
    """Seconds for which the threads of this process have run, and for which they have waited for a core. None where the
    system does not count them.

    >>> times = scheduled()
    >>> times is None or times[0] > 0
    True
    """
    try:
        texts = [(task / "schedstat").read_text() for task in Path("/proc/self/task").iterdir()]
    except OSError:
        return None
    ran, waited = (sum(int(text.split()[place]) for text in texts) / 1e9 for place in (0, 1))
    return ran, waited


class Crowding:
    """Whether other programs slow the steps of training down, from the first steps on or later.

    :param threads: threads of torch. A single one waits for no other.
    :param look: as `scheduled`.

    >>> looks = iter([(0.0, 0.0), (5.0, 0.1), (6.0, 3.0)])
    >>> crowding = Crowding(2, lambda: next(looks))
    >>> [crowding.after_step(seconds) for seconds in (0.5, 0.5, 0.5, 0.5)]
    [None, None, None, None]
    >>> crowding.after_step(9.0)[:58]
    'warning: other programs use the cores: steps take 18 times'
    """

    def __init__(self, threads: int, look: Callable[[], tuple[float, float] | None] = scheduled):
        self.look = look
        self.fastest = float("inf")
        """Seconds of a step, in the fastest window so far."""
        self.steps, self.seconds = 0, 0.0
        self.before = look() if threads > 1 else None

    def after_step(self, seconds: float) -> str | None:
        """Note how long a step took. Returns the warning, once."""
        self.steps, self.seconds = self.steps + 1, self.seconds + seconds
        if self.before is None or self.seconds < _WINDOW:
            return None
        before, self.before = self.before, self.look()
        each, self.steps, self.seconds = self.seconds / self.steps, 0, 0.0
        slower, self.fastest = each / self.fastest, min(self.fastest, each)
        first = slower == 0.0  # before which no window is known
        if self.before is None or (slower < _SLOWER and not first):
            return None
        ran, waited = (now - then for now, then in zip(self.before, before, strict=True))
        if ran > _SHARE * (ran + waited):
            return None
        self.before = None
        steps = "" if first else f"steps take {slower:.0f} times what they did, and "
        return (
            f"warning: other programs use the cores: {steps}threads wait for a core for "
            f"{waited / (ran + waited):.0%} of the time; OMP_NUM_THREADS=1 is faster on a busy machine"
        )
