"""The environment that torchrun makes, and others."""

from collections.abc import Callable

import pytest

from ppl_gen.core import launch, parallel
from ppl_gen.core.errors import BadInput

Call = Callable[..., tuple[int, str, str]]
MADE = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of the second of two processes."""
    for name, value in MADE.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_one_process_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MADE:
        monkeypatch.delenv(name, raising=False)
    assert (launch.world_size(), launch.rank(), launch.local_rank()) == (1, 0, 0)


def test_what_torchrun_sets(made: pytest.MonkeyPatch) -> None:
    launch.check()
    assert (launch.world_size(), launch.rank(), launch.local_rank()) == (2, 1, 1)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK"])
@pytest.mark.parametrize("text", ["abc", "", "-1", "1.5", "9" * 5000])
def test_what_is_no_number_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setattr("ppl_gen.core.cli.time.sleep", lambda seconds: None)  # of another process than the first
    monkeypatch.setenv(name, text)
    status, out, err = call(print)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {name}='{text[:3]}") and "must be a whole number of at least" in err
    assert len(err) < 200


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("RANK", "2", "RANK=2: must be below WORLD_SIZE, which is 2"),
        ("RANK", None, "WORLD_SIZE=2: RANK is not set; start several processes with torchrun"),
        ("MASTER_ADDR", None, "WORLD_SIZE=2: MASTER_ADDR is not set; start several processes with torchrun"),
        ("MASTER_PORT", "abc", "MASTER_PORT='abc': must be a whole number"),
        ("MASTER_PORT", "99999", "torchrun: the processes cannot meet: "),
    ],
)
def test_processes_that_cannot_meet(made: pytest.MonkeyPatch, name: str, text: str | None, words: str) -> None:
    made.setenv("RANK", "0")
    made.setenv(name, text) if text is not None else made.delenv(name)
    with pytest.raises(BadInput) as error:
        parallel.join()
    assert words in error.value.sentence and not parallel.distributed.is_initialized()
