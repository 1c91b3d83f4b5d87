"""What a run directory says of its method and of its images."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from written import compared, write

from ppl_gen.comparison import Comparison
from ppl_gen.core.errors import BadInput
from ppl_gen.core.options import flat
from ppl_gen.evaluation.columns import COLUMNS
from ppl_gen.evaluation.reading import OPTIONS
from ppl_gen.experiment.config import ORIGIN
from ppl_gen.experiment.options import TrainingOptions


def test_an_option_that_came_later_has_its_default(elsewhere: Path) -> None:
    """Runs of before an option was there are no other method, and a row does not call it none. What a class of one's
    own would say is not known."""
    v = [-2.0, -1.0]
    now = json.loads(json.dumps(asdict(TrainingOptions()))) | {"epochs": 3}
    later = {f"training.{name}": value for name, value in now.items() if name not in ("seed", "epochs")}
    later |= {"prior": None, "fixed_model": False, "init_from": None, "model_options.activation": "relu"}
    annealed = {"evaluation.log_px.estimator": "annealed", "evaluation.log_px.num_temperatures": 9}
    old = write("old", v, v, **annealed)
    new = write("new", v, v, **later, **annealed, **{"evaluation.log_px.start": "prior", "training.seed": 1})
    (row,) = compared(old, new)["rows"]
    assert row["seeds"] == [0, 1]
    changed = {"training.adam_beta1": 0.5, "training.clip_grad_norm": 1.0, "model_options.activation": "tanh"}
    write("changed", v, v, **later | changed, **annealed)
    rows = {row["runs"][0]: row["options"] for row in compared(old, Path("changed"))["rows"]}
    assert rows == {
        "old": {"activation": "relu", "adam_beta1": 0.9, "clip_grad_norm": None},
        "changed": {"activation": "tanh", "adam_beta1": 0.5, "clip_grad_norm": 1.0},
    }
    mine = {"guide": "mine.py:Mine", "guide_options.width": 3}
    paths = [write("mine", v, v, **mine), write("before", v, v, guide="mine.py:Mine")]
    paths.append(write("left-out", v, v, guide="mine.py:Mine", **{"guide_options.width": None, "training.seed": 1}))
    rows = {row["runs"][0]: row["options"] for row in compared(*paths)["rows"]}
    assert rows == {"mine": {"guide.width": 3}, "before": {}}
    text = str(Comparison(paths))
    assert "guide.width=3" in text and "none" not in text


def test_a_training_size_matters_to_the_images_that_it_chooses(elsewhere: Path) -> None:
    paths = [write("all", [-2, -1], [-2, -1], **{"evaluation.split": "validation"})]
    paths += [write("few", [-2, -1], [-2, -1], **{"evaluation.split": "validation", "data.train_size": 5})]
    with pytest.raises(BadInput, match="train_size is None in the first and 5"):
        compared(*paths)
    with pytest.raises(BadInput, match="num_images is 2 in the first and 3"):
        compared(write("two", [-2, -1], [-2, -1]), write("three", [-2, -1, 0], [-2, -1, 0]))


def test_the_keys_of_a_configuration_are_known(finished: Path) -> None:
    """Each is an option, a hash of code or data, or says where the run was made."""
    recorded = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    options = {name.partition(".")[0] for name in OPTIONS}
    assert {key for key in recorded if key not in options and not key.endswith("_sha256")} == set(ORIGIN)
    assert {name for name in flat(recorded) if name.startswith(("training.", "data."))} <= OPTIONS.keys()
    columns = {option.metadata.get("column") for option in OPTIONS.values()} - {None}
    assert columns < {column.heading for column in COLUMNS}


def test_where_and_how_fast_a_run_was_made_makes_no_row(elsewhere: Path) -> None:
    v = [-2.0, -1.0]
    made: dict[str, Any] = {"device": "cuda", "max_hours": 2.0, "checkpoint_every": 7, "seed": 1}
    made = {f"training.{name}": value for name, value in made.items()}
    made |= {"num_samples": 5, "data_notice": "read", "versions": {"torch": "9"}, "git_commit": "1", "num_threads": 8}
    (row,) = Comparison([write("a", v, v), write("b", v, v, **made)]).rows
    assert row.seeds == [0, 1] and row.options == {}


def test_an_option_of_a_later_version_makes_a_row(elsewhere: Path) -> None:
    v = [-2.0, -1.0]
    later = {"training.newer": 1, "newest": "x"}
    rows = Comparison([write("a", v, v), write("b", v, v, **later)]).rows
    assert {row.runs[0]: row.options for row in rows} == {"a": {}, "b": {"newer": 1, "newest": "x"}}
