"""A guide, an objective, an estimator, a data source, a command, a section and a figure, each added as a file."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ppl_gen

ROOT = Path(__file__).parents[1]
PACKAGE = Path(ppl_gen.__file__).parent
SMALL = ["--guide.units", "8", "--latent-dim", "1", "--hidden-dims", "8", "--epochs", "1", "--num-samples", "50"]
STEPS = """
import sys
from ppl_gen import brightness, evaluate, fit
from ppl_gen.__main__ import commands
assert commands()["brightness"] == "Measure how bright images and samples are."
fit.command(sys.argv[1:])
brightness.command(["run", "--data", "mine.py:stripes"])
evaluate.command(["run", "--data", "mine.py:stripes", "--estimator", "mine.py:harmonic"])
"""


def examples() -> dict[str, str]:
    """The files in `CONTRIBUTING.md`, by path."""
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
    return dict(blocks)


def test_one_of_each_is_one_file(tmp_path: Path) -> None:
    """In a copy of the package, with nothing changed but the files that CONTRIBUTING shows."""
    shutil.copytree(PACKAGE, tmp_path / "ppl_gen", ignore=shutil.ignore_patterns("__pycache__"))
    files = examples()
    assert len(files) == 6
    for path, content in files.items():
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(content, encoding="utf-8")
    fit = ["vae", "--guide", "laplace", "--objective", "half-alpha", "--data", "mine.py:stripes", "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", STEPS, *fit, *SMALL], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    config, evaluation, brightness = (
        json.loads((tmp_path / "run" / name).read_text("utf-8"))
        for name in ("config.json", "evaluation.json", "brightness.json")
    )
    assert (config["guide"], config["guide_options"]) == ("laplace", {"units": 8})
    assert config["training"]["objective"] == "half-alpha" and config["data_name"] == "mine.py:stripes"
    assert abs(brightness["images"] - 1 / 6) < 1e-6
    # The harmonic mean of positive numbers is below their mean.
    assert evaluation["log_px_harmonic"]["mean"] < evaluation["log_px"]["mean"]
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    for text in ("Brightness", f"{brightness['samples']:.3f}", "The mean of the test images", "harmonic, S = 50"):
        assert text in page
    assert (tmp_path / "run" / "figures" / "mean_image.png").is_file()


def test_every_folder_is_in_the_table() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for folder in (path for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()):
        assert f"`{folder.name}/`" in page
