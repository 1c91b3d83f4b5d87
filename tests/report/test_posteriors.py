"""Posteriors in the directories of runs, and of several runs side by side."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fits import FEW, Laplace
from pages import Page
from written import write

from ppl_gen import compare
from ppl_gen.comparison import Comparison
from ppl_gen.core.errors import BadInput
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.figures.posteriors import Posteriors, Regions
from ppl_gen.report import posteriors
from ppl_gen.report.posteriors import FILE, read_posteriors, shared_posteriors, write_posteriors
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]


def small(run: Path, brightness: float = 0.5) -> Path:
    """Write posteriors of two images, which are all alike, to a run."""
    axes, images = np.tile(np.linspace(-1, 1, 4), (2, 2, 1)), np.full((2, 3, 3), brightness)
    regions = Regions(axes, -np.add.outer(axes[:, 0, :] ** 2, axes[0, 1] ** 2).reshape(2, 4, 4), np.full((2, 3), -1.0))
    regions = dataclasses.replace(regions, levels=np.array([[-0.5, -1.0, -1.5]] * 2))
    write_posteriors(RunDirectory.open(run), Posteriors(images, regions, regions, np.full((2, 2), 0.75)))
    return run


def test_a_fit_of_a_plane_has_them(elsewhere: Path) -> None:
    """Also with a guide of one's own, which has no `encode`. Its KL(q || p) is the gap (6 images, each within 4.5
    errors of its ELBO: false alarms 4e-5). Those of earlier weights are not read."""
    few = FEW | {"latent_dim": 2, "num_samples": 500}
    run = Run.fit("vae", guide=Laplace, data="digits", train_size=200, out="run", **few)
    found = read_posteriors(run.directory)
    assert found is not None and found.guide is not None and found.images.shape == (6, 8, 8)
    assert "posteriors" in run.figures and np.isfinite(found.kl).all()
    evaluation = run.evaluation
    assert evaluation is not None and evaluation.gap is not None and evaluation.gap.values is not None
    assert evaluation.images is not None
    errors = evaluation.images["elbo_mc_se"].values[:6]
    assert (abs(found.kl[:, 0] - evaluation.gap.values[:6]) < 4.5 * errors + 0.01).all()
    earlier = run.directory.arrays(FILE) | {"training_step": np.array(0)}
    np.savez(run.path / FILE, **earlier)  # type: ignore[arg-type]
    assert read_posteriors(run.directory) is None


def test_panels_of_the_runs_with_the_same_images(elsewhere: Path, call: Call) -> None:
    first, second = small(write("a", [-2, -1], [-2, -1])), small(write("b", [-4, -1], [-3, -1], guide="flow"))
    third = small(write("c", [-4, -1], [-3, -2], guide="mixture"), brightness=0.25)
    fourth = write("d", [-5, -1], [-3, -2], guide="planar")
    paths = [first, second, third, fourth]
    status, _, err = call(compare.command, *paths, "--posteriors", "p.png", "--report", "r.html")
    assert status == 0 and err == "" and Path("p.png").read_bytes()[:4] == b"\x89PNG"
    page = Page(Path("r.html").read_text(encoding="utf-8"))
    assert len(page.of("img")) == 2 and "Pictures" in page.texts["h2"]
    assert str(page.of("img")[1]["alt"]).endswith(
        "normal, 0.75 and 0.75; 0.75 and 0.75. flow, 0.75 and 0.75; 0.75 and 0.75"
    )
    figure = Comparison(paths).posteriors()
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["normal\nz[1]", "flow\nz[1]"]


def test_runs_that_differ_in_the_seed_alone_are_one_row(elsewhere: Path) -> None:
    paths = [small(write(f"run{seed}", [-2, -1], [-2, -1], **{"training.seed": seed})) for seed in (3, 4)]
    figure = Comparison(paths).posteriors()
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["normal, seed 3\nz[1]"]


def test_nothing_to_draw(elsewhere: Path, call: Call) -> None:
    """Of a run without the file, with a damaged one, or evaluated with other weights."""
    none, damaged = write("a", [-2, -1], [-2, -1]), small(write("b", [-2, -1], [-2, -1], guide="flow"))
    best = small(write("c", [-2, -1], [-2, -1], guide="mixture", **{"evaluation.checkpoint": "best"}))
    (damaged / FILE).write_bytes(b"no arrays")
    assert shared_posteriors({path.name: path for path in (none, damaged, best)}) == {}
    status, out, err = call(compare.command, none, damaged, "--posteriors", "p.png", "--figure", "f.png")
    assert status == 2 and out == "" and err.count("\n") == 1 and "no run has posteriors of its last weights" in err
    assert not Path("p.png").exists() and not Path("f.png").exists()
    with pytest.raises(BadInput, match="continuous z of two units"):
        Comparison([none]).posteriors()


def test_of_many_rows_the_best_are_drawn(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posteriors, "MOST", 2)
    guides = ("normal", "flow", "mixture")
    paths = [small(write(guide, [-2, -1], [-2 - n, -1], guide=guide)) for n, guide in enumerate(guides)]
    figure, page = Comparison(paths).posteriors(), Comparison(paths).page()
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["normal\nz[1]", "flow\nz[1]"]
    assert "No more than 2 rows are drawn, the best first" in page
    assert "No more than" not in Comparison(paths[:2]).page()
