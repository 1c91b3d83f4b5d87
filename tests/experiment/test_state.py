"""The tensors of a pair."""

from dataclasses import replace
from pathlib import Path

from fits import SMALL, small_config
from torch import nn

from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.config import Given
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.experiment.state import tensors_of
from ppl_gen.training.loop import train


def test_shared_parameters_are_saved_and_trained_once(tmp_path: Path, data: Data) -> None:
    model, guide = assemble(small_config(), data)
    guide.shared = model  # type: ignore[assignment]
    modules = nn.ModuleDict({"model": model, "guide": guide})
    names = tensors_of(modules)
    assert len(names) == len(list(modules.parameters()))
    run = RunDirectory.create(tmp_path / "run", "run", {})
    train(Fitted(small_config(replace(SMALL, epochs=1)), model, guide, data, Given(), run), quiet=True)
    content = run.load_checkpoint()
    assert content is not None
    assert sorted(k.removeprefix("last.") for k in content[0] if k.startswith("last.")) == sorted(names)
