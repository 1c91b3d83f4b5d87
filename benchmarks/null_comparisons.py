"""How often `compare` takes chance for a difference: `python -m benchmarks.null_comparisons`.

Methods that are all the same, each trained from several seeds, are compared with the one that came out best. A run is
better or worse than its method on all images alike, with a standard deviation over seeds of 3.5 standard errors over
images, and on each image by itself. Printed is how often any row looks worse than the first: by more than two standard
errors of both kinds, and by the 95 % interval. Then how often the interval finds a row that is worse by ten standard
deviations over seeds.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppl_gen.core import cli
from ppl_gen.inference.differences import difference

_IMAGES = 100
SEED_SD = 3.5 / _IMAGES**0.5
"""Standard deviation of a run over seeds, in nats."""


class Compared(NamedTuple):
    """Differences of rows to the best of each repetition: arrays [repetitions, rows], zero for the best itself."""

    mean: np.ndarray
    true: np.ndarray
    se: np.ndarray
    se_seeds: np.ndarray
    half_width: np.ndarray

    def beyond_two_errors(self) -> float:
        """The share of repetitions in which a difference is more than two errors of each kind that is known."""
        error = np.fmax(self.se, self.se_seeds)
        return float((abs(self.mean) > 2 * error).any(1).mean())

    def beyond_interval(self) -> float:
        """The share of repetitions in which an interval does not hold 0."""
        return float((abs(self.mean) > self.half_width).any(1).mean())

    def not_held(self) -> float:
        """The share of repetitions in which an interval does not hold the true difference."""
        return float((abs(self.mean - self.true) > self.half_width).any(1).mean())


def simulate(
    seeds: Sequence[int],
    repetitions: int,
    *,
    spread: Sequence[float] | None = None,
    worse: float = 0.0,
    interaction: float = 0.0,
    seed: int = 0,
) -> Compared:
    """Rows compared with the one of the best mean.

    :param seeds: of each row.
    :param spread: the standard deviation over seeds of each row, as a multiple of `SEED_SD`; 1 by default.
    :param worse: nats that the last row is worse by.
    :param interaction: nats by which a method is better or worse on each image by itself, whatever the seed.
    """
    random = np.random.default_rng(seed)
    hard = 10 * random.standard_normal((repetitions, 1, _IMAGES))
    rows = []
    for index, (count, scale) in enumerate(zip(seeds, spread or np.ones(len(seeds)), strict=True)):
        of_method = interaction * random.standard_normal((repetitions, 1, _IMAGES))
        of_run = scale * SEED_SD * random.standard_normal((repetitions, count, 1))
        of_image = scale * random.standard_normal((repetitions, count, _IMAGES))
        rows.append(hard + of_method + of_run + of_image - worse * (index == len(seeds) - 1))
    best = np.stack([row.mean((1, 2)) for row in rows], 1).argmax(1)
    found = Compared(*np.zeros((5, repetitions, len(seeds))))
    found.true[:, -1] -= worse
    found.true[best == len(seeds) - 1] += worse
    for chosen, others in enumerate(rows):
        there = best == chosen
        for index, values in enumerate(rows):
            if index != chosen and there.any():
                each = difference(values[there], others[there], len(rows))
                for field, array in each._asdict().items():
                    getattr(found, field)[there, index] = array
    return found


def table(repetitions: int) -> str:
    """The rates, in markdown."""
    lines = [
        "| rows | seeds of each | beyond two errors of both kinds | 95 % interval | the same, spreads 1 to 0.1 | "
        "a row worse by ten standard deviations is found |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for num_rows, count in ((2, 1), (2, 2), (2, 3), (2, 5), (6, 2), (6, 3), (6, 5), (12, 2), (12, 3), (12, 5)):
        seeds = [count] * num_rows
        null = simulate(seeds, repetitions)
        cells = [f"{num_rows}", f"{count}", f"{null.beyond_two_errors():.1%}"]
        if count == 1:
            cells += [f"none of methods; of weights {null.beyond_interval():.1%}", "", ""]
        else:
            uneven = simulate(seeds, repetitions, spread=np.geomspace(1, 0.1, num_rows).tolist())
            worse = simulate(seeds, repetitions, worse=10 * SEED_SD)
            last = abs(worse.mean[:, -1]) > worse.half_width[:, -1]
            cells += [f"{rate:.1%}" for rate in (null.beyond_interval(), uneven.beyond_interval(), last.mean())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.null_comparisons", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=600, help="comparisons in each row (default 600)")
    print(table(parser.parse_args(arguments).repetitions))


if __name__ == "__main__":
    cli.main(lambda _: main())
