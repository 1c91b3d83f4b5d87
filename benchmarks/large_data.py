"""Memory and time of data that are mapped, beside the same images in memory: `python -m benchmarks.large_data`.

Each row is a process of its own. It reads a file, computes what a model is given of it, and takes steps of a VAE. The
peak is that of `RssAnon`, memory that is not a part of a file, from `/proc/self/status`. Rows named `array` hand the
images over in Python instead.
"""

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

COUNT, STEPS, WARM_UP = 2_000_000, 600, 100


def measure(file: str, in_memory: bool) -> dict[str, float]:
    """The peak in MB until data are loaded, the peak after some steps, seconds of loading, and milliseconds of CPU time
    of a batch and of a step."""
    from benchmarks.steps import training_step
    from ppl_gen.data.loading import load_data
    from ppl_gen.data.options import DataOptions
    from ppl_gen.data.orders import Order
    from ppl_gen.experiment.config import Config, Given
    from ppl_gen.experiment.fitted import Assembled
    from ppl_gen.experiment.options import TrainingOptions

    peak = [0.0]

    def watch() -> None:
        while True:
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            peak[0] = max(peak[0], int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 1024)
            time.sleep(0.005)

    threading.Thread(target=watch, daemon=True).start()
    started = time.perf_counter()
    data = load_data(DataOptions(file), np.load(file) if in_memory else None)
    found = {"load MB": peak[0], "load s": time.perf_counter() - started}
    options = TrainingOptions()
    config = Config(model="vae", guide="normal", model_options={"hidden_dims": (200,)}, training=options)
    assembled = Assembled.make(config, data, Given())
    order = Order(len(data.train), seed=1)[: 128 * STEPS].split(128)
    step = training_step(assembled.model, assembled.guide, data.batch(order[0]), options)
    for index in order[:WARM_UP]:
        data.batch(index)
        step()
    for name, call in (("batch ms", lambda index: data.batch(index)), ("step ms", lambda index: step())):
        started = time.process_time()
        for index in order[WARM_UP:]:
            call(index)
        found[name] = 1000 * (time.process_time() - started) / (STEPS - WARM_UP)
    return found | {"all MB": peak[0]}


def make(folder: Path) -> dict[str, Path]:
    """The files: images of random bytes, the same as float64, and 20 GB of which nearly all is a hole."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8), np.uint8)
    files = {name: folder / f"{name}.npy" for name in ("uint8", "float64", "hole")}
    np.save(files["uint8"], images)
    np.save(files["float64"], images / 255)
    with open(files["hole"], "wb") as file:
        shape = (26_000_000, 28, 28)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.write(images.tobytes())
        file.truncate(file.tell() - images.nbytes + int(np.prod(shape)))
    return files


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], sys.argv[2] == "array")))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, file in make(Path(folder)).items():
            for how in ("file", "array") if name != "hole" else ("file",):
                command = [sys.executable, "-m", "benchmarks.large_data", str(file), how]
                found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
                print(f"{name:8} {how:6}", "  ".join(f"{key} {value:.2f}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
