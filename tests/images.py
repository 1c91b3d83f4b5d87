"""Files of images, as data sets have them."""

import struct
from pathlib import Path

import numpy as np

COUNTS = {"train": 600, "t10k": 100}


def write_mnist(folder: Path, dataset: str = "MNIST") -> Path:
    """A small data set in MNIST's format."""
    raw = folder / dataset / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in COUNTS.items():
        pixels = rng.integers(0, 256, (count, 28, 28), np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = rng.integers(0, 10, count, np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return raw
