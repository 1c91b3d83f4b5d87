"""Small fits and evaluations of every kind, and all the numbers that they end with.

Run it before and after a change that must change no number: `--out` keeps what it found, `--against` compares. New keys
are no difference, and neither are times, versions and paths. The same machine and number of threads give the same bits.
"""

import argparse
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors import safe_open

OWN_GUIDE = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class MyGuide(nn.Module):
    def __init__(self, data_dim, latent_dim, *, units: int = 30):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(data_dim, units), nn.ELU(), nn.Linear(units, latent_dim))

    def guide(self, x):
        scale = pyro.param("scale", torch.ones(1), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Laplace(self.net(x), scale).to_event(1))
"""
SMALL = "--data digits --train-size 300 --epochs 2 --num-samples 30 --hidden-dims 20"
FITS = {
    "vae": f"vae --latent-dim 3 {SMALL}",
    "conv": "vae --data digits --train-size 200 --epochs 1 --num-samples 20 --network conv --channels 4 8 "
    "--latent-dim 2",
    "hierarchical": "hierarchical-vae --latent-dims 4 2 --hidden-dims 20 10 --data digits --train-size 300 --epochs 2 "
    "--num-samples 30 --objective iwae --num-particles 3",
    "mixture": "mixture --num-components 5 --data digits --train-size 300 --epochs 3 --num-samples 30",
    "belief-net": "belief-net --latent-dim 5 --data digits --train-size 300 --epochs 3 --num-samples 30",
    "bernoulli": "belief-net --guide bernoulli --latent-dim 5 --data digits --train-size 300 --epochs 2 "
    "--num-samples 30",
    "factor-analysis": "factor-analysis --latent-dim 3 --data digits --train-size 300 --epochs 2 --num-samples 30",
    "exact-gaussian": "factor-analysis --guide exact-gaussian --latent-dim 2 --data digits --train-size 300 --epochs 2 "
    "--num-samples 30",
    "gan": "gan --data digits --train-size 300 --epochs 1 --num-samples 30 --hidden-dims 10 --latent-dim 2",
    "flow": f"vae --guide flow --guide.transform-dims 8 --latent-dim 2 {SMALL}",
    "planar": f"vae --guide flow --guide.transform planar --latent-dim 2 {SMALL} --kl-warmup 1",
    "vamp": f"vae --prior vamp --prior.num-components 10 --latent-dim 2 {SMALL}",
    "own": f"vae --guide GUIDE --guide.units 20 --latent-dim 2 {SMALL} --objective dreg --num-particles 3",
    "semi-amortized": f"vae --guide semi-amortized --latent-dim 2 {SMALL} --epochs 1",
    "mixture-guide": f"vae --guide mixture --latent-dim 2 {SMALL}",
    "student-t": f"vae --guide student-t --latent-dim 2 {SMALL} --optimizer muon --schedule one-cycle",
    "multivariate-normal": f"vae --guide multivariate-normal --latent-dim 2 {SMALL} --clip-grad-norm 5",
    "dequantized": f"vae --likelihood normal --binarization dequantized --latent-dim 2 {SMALL}",
}
OBJECTIVES = {
    "vae --latent-dim 2": ("elbo-analytic-kl", "stl", "beta", "iwae:3", "renyi:3", "elbo:2"),
    "vae --latent-dim 2 --guide mixture": ("stl", "beta", "iwae:3", "dreg:3"),
    "belief-net --guide bernoulli --latent-dim 4": ("vimco:3", "rws:3", "wake-sleep"),
}
EVALUATIONS = {
    "vae": "--estimator annealed --annealed.num-temperatures 5 --annealed.num-chains 3 --sandwich 4 --num-images 12",
    "flow": "--gaps --num-images 2 --gap-copies 1 --num-samples 20",
    "conv": "--prior-share 0.3 --temperature 1.2 --num-images 20",
    "own": "--estimator prior --num-images 20",
    "belief-net": "--estimator importance --num-images 20",
}
USES = {
    "fill vae": "fill.json",
    "fill mixture": "fill.json",
    "splice vae --num-images 20 --num-batches 20": "splice.json",
    "responsibilities mixture": "responsibilities.json",
    "quality vae --num-images 30 --classifier-steps 20": "quality.json",
}
_NO_NUMBERS = {"seconds", "versions", "git_commit", "command", "num_threads", "training_step_seconds"}


def plain(content: Any) -> Any:
    """A JSON object without what differs from one run to the next."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items() if key not in _NO_NUMBERS}
    return [plain(each) for each in content] if isinstance(content, list) else content


def numbers(run: Path) -> dict[str, Any]:
    """Everything of a run that must not change: its JSON files, and hashes of its weights and of its arrays."""
    import xarray

    found: dict[str, Any] = {}
    for name in ("evaluation", "gaps", "fill", "splice", "responsibilities", "quality", "explorer", "config"):
        if (run / f"{name}.json").exists():
            found[name] = plain(json.loads((run / f"{name}.json").read_text(encoding="utf-8")))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found["metrics"] = [plain(json.loads(line)) for line in lines]
    with safe_open(run / "checkpoint.safetensors", framework="np") as file:
        found["weights"] = {name: _hash(file.get_tensor(name)) for name in sorted(file.keys())}
    if (run / "evaluation.nc").exists():
        with xarray.open_dataset(run / "evaluation.nc", group="evaluation", engine="h5netcdf") as images:
            found["images"] = {str(name): _hash(each.values) for name, each in images.items()}
    return found


def _hash(values: Any) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Where what was found before is not what is found now."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [line for key in ours for line in differences(ours[key], theirs.get(key), f"{where}/{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [line for i, (one, two) in pairs for line in differences(one, two, f"{where}/{i}")]
    return [] if ours == theirs else [f"{where}: {ours} is now {theirs}"]


def _run(*words: str, interrupt: bool = False) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if interrupt and line.startswith("epoch") and not line.startswith("epoch 0"):
            process.send_signal(signal.SIGINT)
            interrupt = False
    if process.wait() not in (0, 1 if "interrupted" in "".join(said) else 0):
        raise SystemExit(f"{' '.join(words)}:\n{''.join(said)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write what was found into this .json")
    parser.add_argument("--against", type=Path, help="compare with what was found before")
    options = parser.parse_args()
    if options.out is not None:
        options.out = options.out.absolute()
    before = None if options.against is None else json.loads(options.against.read_text(encoding="utf-8"))
    started = time.perf_counter()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("my_guide.py").write_text(OWN_GUIDE, encoding="utf-8")
        own = "my_guide.py:MyGuide"
        fits = dict(FITS)
        for model, objectives in OBJECTIVES.items():
            for objective in objectives:
                name, _, particles = objective.partition(":")
                small = SMALL if model.startswith("vae") else SMALL.replace("--hidden-dims", "--guide.hidden-dims")
                more = f" --num-particles {particles}" if particles else ""
                key = f"{model.split()[0]}-{'mixture-' if 'mixture' in model else ''}{objective.replace(':', '-')}"
                fits[key] = f"{model} {small} --epochs 1 --objective {name}{more}"
        for name, words in fits.items():
            _run("ppl_gen.fit", *shlex.split(words.replace("GUIDE", own)), "--out", name)
        _run("ppl_gen.fit", *shlex.split(FITS["vae"]), "--epochs", "4", "--out", "resumed", interrupt=True)
        _run("ppl_gen.fit", "--resume", "resumed")
        _run("ppl_gen.fit", "--init-from", "vae", "--refit-guide", "flow", "--epochs", "1", "--out", "refitted")
        found: dict[str, Any] = {name: numbers(Path(name)) for name in (*fits, "resumed", "refitted")}
        for name, words in EVALUATIONS.items():
            named = ["--guide", own] if name == "own" else []
            _run("ppl_gen.evaluate", name, *named, *shlex.split(words))
            found[f"{name}, evaluated again"] = numbers(Path(name))
        for words, file in USES.items():
            command, run, *rest = shlex.split(words)
            _run(f"ppl_gen.{command}", run, *rest)
            found[words] = plain(json.loads((Path(run) / file).read_text(encoding="utf-8")))
        _run("ppl_gen.sample", "vae", "--draws", "--out", "images.npy")
        found["sample"] = hashlib.sha256(Path("images.npy").read_bytes()).hexdigest()
        runs = ["hierarchical", "mixture", "vamp", "planar", "student-t", "vae-stl"]
        table = subprocess.check_output([sys.executable, "-m", "ppl_gen.compare", *runs, "--format", "json"])
        found["compare"] = plain(json.loads(table))
    for name, each in found.items():
        print(f"{hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest()[:16]}  {name}")
    if options.out is not None:
        options.out.write_text(json.dumps(found), encoding="utf-8")
    lines = [] if before is None else differences(before, found)
    print(*lines, sep="\n")
    print(f"{len(found)} kinds of numbers in {time.perf_counter() - started:.0f} s; {len(lines)} differences")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
