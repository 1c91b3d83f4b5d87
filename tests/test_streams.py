"""Every command, where what it prints cannot be written: the work is done, and one line says what was lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fits import SHORT

import ppl_gen
from ppl_gen.__main__ import commands

_VAE = ("--hidden-dims", "4", "--latent-dim", "1")
COMMANDS = {  # with a file that each of them writes
    "fit": (("vae", *SHORT, *_VAE, "--out", "new"), "new/report.html"),
    "evaluate": (("vae", "--num-samples", "20", "--num-images", "20"), "vae/evaluation.json"),
    "compare": (("vae", "mixture", "--report", "page.html"), "page.html"),
    "sweep": (("vae", "--guides", "normal", "--out", "new", "--", *SHORT, *_VAE), "new/vae-normal-0/report.html"),
    "sample": (("vae",), "vae/samples.png"),
    "fill": (("vae", "--num-images", "3", "--num-samples", "20"), "vae/fill.json"),
    "splice": (("vae", "--num-samples", "5", "--num-batches", "2"), "vae/splice.json"),
    "responsibilities": (("mixture",), "mixture/responsibilities.json"),
    "quality": (("vae", "--classifier-steps", "20"), "vae/quality.json"),
    "calibrate": (("vae", "--num-images", "50", "--num-samples", "50"), "vae/calibration.json"),
    "gradients": (("net", "--draws", "20", "--warm-up", "1", "--objectives", "rloo"), "net/gradients.json"),
}


def run(redirection: str, name: str, *arguments: str) -> tuple[int, str]:
    """Run a command in a shell, where standard output has no characters but ASCII; returns status and standard
    error."""
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "", sys.executable, "-m", name, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(ppl_gen.__file__).parents[1]), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    return done.returncode, done.stderr.decode("ascii")


def test_no_command_is_left_out() -> None:
    assert COMMANDS.keys() == commands().keys()


@pytest.mark.attack
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_behind_standard_output(three_runs: Path, name: str) -> None:
    arguments, file = COMMANDS[name]
    if arguments[0] == "net":
        net = {"guide": "bernoulli", "latent_dim": 2, "data": "digits", "train_size": 60, "num_samples": 5}
        ppl_gen.Run.fit("belief-net", epochs=1, out="net", quiet=True, **net)
    before = Path(file).read_bytes() if Path(file).exists() else b""
    status, err = run(">/dev/full", f"ppl_gen.{name}", *arguments)
    assert status == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith(
        "error: standard output cannot be written: No space left on device; its last"
    )
    assert Path(file).read_bytes() != before


@pytest.mark.attack
@pytest.mark.parametrize("redirection", ["| head -1", "2>&1 >/dev/null | head -1"])
def test_a_fit_that_nobody_reads(elsewhere: Path, redirection: str) -> None:
    arguments, file = COMMANDS["fit"]
    status, err = run(redirection, "ppl_gen", "fit", *arguments)
    assert status == 0 and "error" not in err.lower() and Path(file).exists()
    assert Path("new/evaluation.json").exists()
