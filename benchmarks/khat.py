"""What k-hat of importance sampling says of the images of a run: `python -m benchmarks.khat runs/annealed-1-vae`.

The run has been evaluated by annealing, too. The table tells how far annealing is above importance sampling on the
images of each range of k-hat, and on which share of them by more than both errors. Below it is the correlation of
k-hat with the difference.
"""

import argparse
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import xarray

from benchmarks.pages import markdown
from ppl_gen.core import cli
from ppl_gen.core.errors import BadInput

EDGES = (-math.inf, 0.7, 1.0, 1.3, math.inf)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.khat", description=__doc__)
    parser.add_argument("run", type=Path, help="the run, with an evaluation.nc by --estimator annealed")
    file = parser.parse_args(arguments).run / "evaluation.nc"
    images = xarray.load_dataset(file, group="evaluation") if file.exists() else xarray.Dataset()
    if "disagrees" not in images:
        raise BadInput(f"{file}: is missing, or no evaluation by --estimator annealed")
    khat, disagrees = images["khat"].values, images["disagrees"].values
    missed = (images["log_px_annealed"] - images["log_px_importance"]).values
    rows = []
    for least, most in pairwise(EDGES):
        inside = (least < khat) & (khat <= most)
        name = f"to {most}" if least == -math.inf else f"above {least}" if most == math.inf else f"{least} to {most}"
        numbers = ["–"] * 3
        if inside.any():
            apart = f"{100 * disagrees[inside].mean():.0f} %"
            numbers = [f"{missed[inside].mean():.2f}", f"{np.median(missed[inside]):.2f}", apart]
        rows.append([name, f"{inside.sum()}", *numbers])
    header = ["k-hat of importance sampling", "images", "annealing − importance, mean", "median", "beyond their errors"]
    print(markdown(header, rows))
    known = np.isfinite(khat)
    print(f"correlation of k-hat with the difference: {np.corrcoef(khat[known], missed[known])[0, 1]:.2f}")


if __name__ == "__main__":
    cli.main(lambda _: main())
