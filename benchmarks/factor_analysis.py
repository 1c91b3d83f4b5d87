"""Factor analysis and probabilistic PCA beside scikit-learn's: `python -m benchmarks.factor_analysis`.

scikit-learn's PCA is exact; its FactorAnalysis climbs the likelihood by expectation maximization. With its randomized
singular value decomposition it stops 1.2 nats early on MNIST, and the exact one takes seconds an iteration on 50,000
images; but the likelihood depends on them by their mean and covariance alone, and so it is given fewer rows that have
the same. Both are given one draw of the uniform noise; the fit here draws anew at every epoch. Fits that are there
already are not made again, and one that was interrupted goes on.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.decomposition import FactorAnalysis as ScikitFactorAnalysis

import ppl_gen
from benchmarks.pages import markdown
from ppl_gen.core import cli
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.config import Config, training_defaults
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.run import Run


def _by_covariance(images: np.ndarray, latent_dim: int) -> ScikitFactorAnalysis:
    """Fitted to rows with the mean and covariance of images [N, pixels], of which there are more."""
    mean = images.mean(0)
    root: np.ndarray = np.linalg.qr(images - mean, mode="r")  # type: ignore[assignment]
    rows = np.concatenate([root, -root]) * np.sqrt(len(root) / len(images))
    fitted = ScikitFactorAnalysis(latent_dim, max_iter=1000, tol=1e-3, svd_method="lapack").fit(rows)
    fitted.mean_ = mean
    return fitted


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.factor_analysis", description=__doc__)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--latent-dim", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--runs", type=Path, default=Path("runs/factor-analysis"), help="where the fits are")
    given = parser.parse_args()
    rows = []
    for noise in ("isotropic", "diagonal"):
        path = given.runs / noise
        if not (path / "evaluation.json").exists():
            training = TrainingOptions(**training_defaults("factor-analysis") | {"epochs": given.epochs})
            options = {"latent_dim": given.latent_dim, "noise": noise}
            data_options = DataOptions(given.data, "dequantized")
            config = Config("factor-analysis", options, "exact-gaussian", {}, data=data_options, training=training)
            if path.exists():
                Run.open(path).resume(quiet=True)
            else:
                Run.start(config, out=path, quiet=True)
        model, _, data, _ = ppl_gen.load(path)
        train, test = data.targets("train"), data.targets("test")
        with torch.no_grad():
            ours = [model.log_px(x) for x in (train, test)]  # type: ignore[operator]
        started = time.perf_counter()
        kind = "PCA" if noise == "isotropic" else "FactorAnalysis"
        if noise == "isotropic":
            theirs = PCA(given.latent_dim).fit(train.double().numpy())
        else:
            theirs = _by_covariance(train.double().numpy(), given.latent_dim)
        seconds = time.perf_counter() - started
        scores = [torch.from_numpy(theirs.score_samples(x.double().numpy())) for x in (train, test)]
        trained = RunDirectory.open(path).metrics()[-1]["seconds"]
        rows.append([f"`--noise {noise}`", *(f"{each.mean():.2f}" for each in ours), f"{trained:.0f}"])
        rows.append([f"scikit-learn, `{kind}`", *(f"{each.mean():.2f}" for each in scores), f"{seconds:.0f}"])
        differences = [a - b for a, b in zip(ours, scores, strict=True)]
        error = differences[1].std() / len(test) ** 0.5
        rows.append(["difference", f"{differences[0].mean():+.3f}", f"{differences[1].mean():+.3f} ± {error:.3f}", ""])
        print(f"{noise} is done", flush=True)
    images = (f"{len(split):,} {name} images" for split, name in ((train, "training"), (test, "test")))
    print("\n" + markdown(["exact log p(x), nats", *images, "seconds of fitting"], rows))


if __name__ == "__main__":
    cli.main(lambda _: main())
