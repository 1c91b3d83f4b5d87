"""What a command does without, until it has work to do: torch takes seconds to import."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "pyro", "matplotlib", "pandas", "xarray", "numpy", "scipy", "h5py", "filelock"}
COMMANDS = (
    "compare",
    "evaluate",
    "sweep",
    "sample",
    "fill",
    "splice",
    "responsibilities",
    "quality",
    "calibrate",
    "gradients",
)
ONE_RUN = tuple(name for name in COMMANDS if name != "sweep")


def _run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("ppl_gen", 0, "usage: ppl-gen NAME"),
        ("ppl_gen --version", 0, "ppl_gen "),
        ("ppl_gen fitt", 2, "error: fitt: no such command; did you mean 'fit'?"),
        ("ppl_gen.compare --help", 0, "RUN [RUN …]"),
        ("ppl_gen.evaluate nowhere", 2, "error: nowhere: no such run directory"),
        ("ppl_gen.compare nowhere", 2, "error: nowhere: no such run directory"),
        ("ppl_gen.fit vea", 2, "error: unknown model 'vea'; did you mean 'vae'?"),
        ("ppl_gen.fit vae --guide nrmal", 2, "error: unknown guide 'nrmal'; did you mean 'normal'?"),
        ("ppl_gen.fit --epochs 3", 2, "error: name a model first: "),
    ],
)
def test_as_it_is_typed(words: str, status: int, said: str, tmp_path: Path) -> None:
    done = _run("-X", "importtime", "-m", *words.split(), folder=tmp_path)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == status and said in done.stdout + done.stderr, done.stderr
    assert "ppl_gen.core.cli" in imported and not HEAVY & imported


def test_help_and_missing_runs(tmp_path: Path) -> None:
    """Each command in turn, in one process. `fit --help` lists the options of classes, which are beside torch."""
    code = f"""if True:
        import sys
        from importlib import import_module
        from ppl_gen.core.errors import BadInput
        lines = [[name, "--help"] for name in {COMMANDS}] + [[name, "nowhere"] for name in {ONE_RUN}]
        for name, *arguments in [*lines, ["fit", "--resume", "nowhere"]]:
            try:
                import_module(f"ppl_gen.{{name}}").command(arguments)
            except SystemExit as error:
                assert arguments == ["--help"] and error.code in (0, None)
            except BadInput as error:
                assert arguments[-1] == "nowhere" and error.sentence == "nowhere: no such run directory", error
            else:
                raise AssertionError(name)
            heavy = {HEAVY} & set(sys.modules)
            assert not heavy, (name, arguments, heavy)"""
    done = _run("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(COMMANDS)


def test_help_of_fit(tmp_path: Path) -> None:
    """It imports classes of models and guides, but nothing that trains, evaluates or draws; and of what torch's import
    makes, nothing is looked through for garbage."""
    code = """if True:
        import gc, sys
        from ppl_gen.core.memory import import_torch
        from ppl_gen.fit import command
        try:
            command(["vae", "--help"])
        except SystemExit:
            pass
        kept = gc.get_freeze_count()
        import_torch()
        assert gc.isenabled() and gc.get_freeze_count() == kept > 50_000
        not_needed = {"matplotlib", "pandas", "xarray", "scipy", "sklearn", "ppl_gen.run", "ppl_gen.training"}
        assert "pyro" in sys.modules and not not_needed & set(sys.modules), not_needed & set(sys.modules)"""
    done = _run("-c", code, folder=tmp_path)
    assert done.returncode == 0 and "--guide.hidden-dims" in done.stdout, done.stderr
