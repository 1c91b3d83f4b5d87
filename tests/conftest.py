import ctypes
import gc
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

# One thread for each of the processes that share the tests, and for the commands that they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# In the background of a script and under nohup these are ignored, and a command would leave them so.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import hypothesis
import matplotlib.font_manager  # noqa: F401  (its cache, which it tells of on stderr, is built here and in no test)
import pyro
import torch
from PIL import Image
from torch import Tensor

from ppl_gen.core import cli
from ppl_gen.core.seeds import seed_torch
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data
from ppl_gen.evaluation import gap_split
from ppl_gen.experiment.config import Config
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.figures import style
from ppl_gen.figures.canvas import Figure
from ppl_gen.inference.annealed import Annealing, fit_scale
from ppl_gen.inference.gaps import Search
from ppl_gen.inference.objectives import adversarial
from ppl_gen.run import Run

# What has been imported stays. Looking through it for garbage would be a tenth of the time of all tests.
gc.freeze()
gc.set_threshold(20_000, 20, 20)

# How fast a machine is, and what it found on another day, decide nothing.
hypothesis.settings.register_profile(
    "anywhere",
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("anywhere")


THREE: dict[str, dict[str, Any]] = {
    "mixture": {"model": "mixture", "guide": "enumerated", "model_options": {"num_components": 5}},
    "belief-net": {"model": "belief-net", "guide": "enumerated", "model_options": {"latent_dim": 3}},
    "vae": {"model_options": {"hidden_dims": (8,), "latent_dim": 2}},
}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Nothing comes from the test before: no draw, no parameter, and no validation that was turned off. The first use
    of `torch._dynamo` in a process turns it off for good."""
    with torch.random.fork_rng([]), pyro.get_param_store().scope(), pyro.validation_enabled(True):
        seed_torch(0)
        yield


@pytest.fixture(autouse=True)
def _short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search over contexts ends after ten steps. `inference/test_gaps.py` has whole ones."""
    monkeypatch.setattr(gap_split, "Search", partial(Search, window=5, most_windows=2))


@pytest.fixture(autouse=True)
def _short_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise of a GAN is estimated in two rounds of short chains. `models/test_gan.py` has whole ones."""
    few = Annealing(num_temperatures=2, num_chains=2, leapfrog_steps=1)
    monkeypatch.setattr(adversarial, "fit_scale", partial(fit_scale, annealing=few, rounds=2))


_BLANK = io.BytesIO()
Image.new("L", (1, 1)).save(_BLANK, "PNG")
_styled, _drawn = style.styled, True


def _styled_if_drawn(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """`styled`, but the function returns an empty figure while `_drawn` is False."""
    drawing = _styled(draw)

    @wraps(draw)
    def drawing_or_not(*args: Any, **kwargs: Any) -> Figure:
        return drawing(*args, **kwargs) if _drawn else Figure()

    return drawing_or_not


style.styled = _styled_if_drawn  # the files of pictures are imported later, by the first test that draws


@pytest.fixture(autouse=True)
def _blank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in a picture is computed, but the picture is not drawn, and is written as one pixel: drawing, laying out
    and painting would be most of the time of a small fit. Pictures of all kinds of models and data are drawn: in
    `models/`, in `data/`, and in tests that are marked `drawn`. They are drawn and painted in `figures/`, in `report/`,
    in commands that a test starts as a process, and in tests that are marked `painted`."""
    folder, drawn = request.path.parent.name, request.node.get_closest_marker("drawn")
    if request.node.get_closest_marker("painted") or (folder in ("figures", "report") and not drawn):
        return

    monkeypatch.setattr(Figure, "png", lambda self: _BLANK.getvalue())
    if folder not in ("models", "data") and not drawn:
        monkeypatch.setattr(sys.modules[__name__], "_drawn", False)


@pytest.fixture(scope="session")
def data() -> Data:
    """200 training images of the bundled digits."""
    return load_data(DataOptions(data="digits", train_size=200))


@pytest.fixture(scope="session")
def x() -> Tensor:
    """200 binary images of 4 × 5 pixels."""
    return torch.bernoulli(torch.full((200, 4, 5), 0.3), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the default pair, fitted from Python."""
    config = Config(
        model_options={"hidden_dims": (16,)},
        data=DataOptions(data="digits", train_size=200),
        training=TrainingOptions(epochs=2),
        num_samples=50,
    )
    return Run.start(config, out=tmp_path_factory.mktemp("runs") / "run", quiet=True).directory.path


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a VAE with four hidden units, fitted for an epoch."""
    config = Config(
        model_options={"hidden_dims": (4,), "latent_dim": 2},
        data=DataOptions(data="digits", train_size=60),
        training=TrainingOptions(epochs=1),
        num_samples=30,
    )
    return Run.start(config, out=tmp_path_factory.mktemp("runs") / "run", quiet=True).directory.path


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without data sets or runs, and no data folder named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPL_GEN_DATA", raising=False)
    return tmp_path


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Permissions of files hold, for the superuser as well: it gives up the two capabilities that pass over them."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("the superuser may read and write everything")
    libc, version = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    before, fewer = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    for content in (before, fewer):
        assert libc.capget(version, content) == 0
    fewer[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(version, fewer) == 0
    yield
    assert libc.capset(version, before) == 0


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command as its module does; returns exit status, standard output and standard error."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run(command: Callable[[list[str]], Any], *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ppl_gen", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main(command)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        out, err = capsys.readouterr()
        assert isinstance(exit.value.code, int)
        return exit.value.code, out, err

    return run


@pytest.fixture(scope="session")
def three_fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small run of each model."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in THREE.items():
        data = DataOptions(data="digits", train_size=150)
        config = Config(**options, data=data, training=TrainingOptions(epochs=1), num_samples=20)
        Run.start(config, out=folder / name, quiet=True)
    return folder


@pytest.fixture
def three_runs(elsewhere: Path, three_fitted: Path) -> Path:
    """A working directory with a small run of a mixture, of a belief net and of a VAE."""
    for name in THREE:
        shutil.copytree(three_fitted / name, name)
    return elsewhere
