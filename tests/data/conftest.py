from pathlib import Path

import pytest
from images import write_mnist

from ppl_gen.data import loading as data_module


@pytest.fixture
def small_mnist(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(data_module, "_MNIST_COUNTS", (600, 100))
    monkeypatch.setattr(data_module, "_MNIST_SPLIT", (500, 100))
    return write_mnist(elsewhere / "data")
