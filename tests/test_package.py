"""The package as a whole."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ppl_gen

ROOT = Path(__file__).parents[1]


def test_importing_the_package_is_light_and_changes_nothing() -> None:
    code = (
        "import sys, ppl_gen; assert 'torch' not in sys.modules and 'pyro' not in sys.modules;"
        "import torch, pyro; before = (torch.get_rng_state().tolist(), pyro.settings.get(), torch.get_num_threads());"
        "import ppl_gen.fit, ppl_gen.evaluate;"
        "assert before == (torch.get_rng_state().tolist(), pyro.settings.get(), torch.get_num_threads());"
        "heavy = {'matplotlib', 'arviz', 'sklearn', 'xarray', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_wheel_runs_outside_of_the_checkout(tmp_path: Path) -> None:
    """It holds all that a fit and its page need, and its types are known to other packages."""
    source, installed, elsewhere = (tmp_path / name for name in ("source", "installed", "elsewhere"))
    shutil.copytree(ROOT / "ppl_gen", source / "ppl_gen", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", installed, wheel], check=True)
    environment = os.environ | {"PYTHONPATH": str(installed)}
    code = "import ppl_gen; print(ppl_gen.__file__, ppl_gen.__version__)"
    run = partial(subprocess.run, cwd=elsewhere, env=environment, capture_output=True, text=True, check=True)
    file, version = run([sys.executable, "-c", code]).stdout.split()
    assert file == str(installed / "ppl_gen" / "__init__.py") and f"ppl_gen-{version}-" in wheel.name
    fit = shlex.split("-m ppl_gen.fit vae --data digits --train-size 60 --epochs 1 --num-samples 20 --out run")
    run([sys.executable, *fit])
    assert (elsewhere / "run" / "report.html").exists() and (installed / "ppl_gen" / "py.typed").exists()


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == ppl_gen.__version__
    assert f"\nversion: {ppl_gen.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0].rstrip(",") == ppl_gen.__version__


def _pins(file: str) -> dict[str, str]:
    """The versions in a file of requirements, by name."""
    lines = re.findall(r"^([\w.-]+)==([\w.+-]+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


def test_constraints_and_lock_pin_the_same_versions() -> None:
    """What the package needs to run and to be built is pinned in both, at a version that it allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    constraints, lock = _pins("constraints.txt"), _pins("requirements.lock")
    needed = [Requirement(text) for text in (*project["project"]["dependencies"], *project["build-system"]["requires"])]
    assert len(needed) > 15
    for requirement in needed:
        name = canonicalize_name(requirement.name)
        assert constraints[name] == lock[name] and requirement.specifier.contains(lock[name]), name
    assert {name: lock[name] for name in lock.keys() & constraints.keys()} == {
        name: constraints[name] for name in lock.keys() & constraints.keys()
    }
    tools = [each for extra in project["project"]["optional-dependencies"].values() for each in map(Requirement, extra)]
    for requirement in tools:
        assert requirement.specifier.contains(constraints[canonicalize_name(requirement.name)]), requirement.name


def test_lock_has_hashes_and_names_no_place() -> None:
    """pip refuses a file of requirements with `--require-hashes` if one of them has no hash."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(_pins("requirements.lock")) > 40
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text and not re.search(r"^\s*(-|/|file:)(?!-hash)", text, re.MULTILINE)
    command = re.search(r"^#\s+(uv pip compile .*)$", text, re.MULTILINE)
    assert command is not None and command[1] in (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
