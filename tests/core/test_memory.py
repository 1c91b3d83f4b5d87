"""Free memory: that of the machine, or what the limit of a control group leaves."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
import torch

from ppl_gen.core import memory


def test_free_memory() -> None:
    assert 0 < memory.free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_limit_of_a_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached file pages count as free."""
    files = {
        "/proc/meminfo": ["MemTotal: 9 kB", "MemAvailable: 5000000 kB"],
        "/sys/fs/cgroup/memory.max": ["1000"],
        "/sys/fs/cgroup/memory.current": ["800"],
        "/sys/fs/cgroup/memory.stat": ["active_file 7", "inactive_file 300"],
    }
    monkeypatch.setattr(memory, "_lines", lambda path: files.get(path, []))
    assert memory.free_memory() == 1000 - 800 + 300
    files["/sys/fs/cgroup/memory.max"] = ["max"]
    assert memory.free_memory() <= 5_000_000 * 1024


def test_a_limit_for_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks for more than free memory fails at once, where the kernel would grant it. There is no limit later."""
    monkeypatch.setattr(memory, "free_memory", lambda: 2**28)
    monkeypatch.setattr(memory, "_GPUS", ())
    with memory.limited_memory():
        assert len(torch.empty(2**27, dtype=torch.uint8)) == 2**27
        with pytest.raises(RuntimeError) as error:
            torch.empty(2**29, dtype=torch.uint8)
        assert memory.is_out_of_memory(error.value) and not memory.is_out_of_memory(RuntimeError("shapes differ"))
    assert len(torch.empty(2**29, dtype=torch.uint8)) == 2**29
    monkeypatch.setattr(memory, "_lines", lambda path: [])
    with memory.limited_memory():  # not on Linux
        assert len(torch.empty(2**29, dtype=torch.uint8)) == 2**29


def test_a_large_tensor_lies_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content is that of a tensor in memory, and no file is left."""
    monkeypatch.setattr(memory, "LARGE_TENSOR", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for dtype in (torch.float64, torch.uint8, torch.bool):
        numbers = torch.arange(3000).reshape(100, 30)
        found = memory.empty(numbers.shape, dtype)
        assert found.dtype == dtype and found.shape == numbers.shape
        found.copy_(numbers)
        assert torch.equal(found[5:], numbers[5:].to(dtype))
        assert "(deleted)" in Path("/proc/self/maps").read_text() or not Path("/proc/self/maps").exists()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_it_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(memory, "LARGE_TENSOR", 1000)
    monkeypatch.setattr(os, "posix_fallocate", full)
    found = memory.empty((100, 30), torch.float32)
    assert found.fill_(2).sum() == 6000


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert memory._lines(str(tmp_path / "nothing")) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_free_memory_of_a_gpu() -> None:
    free = memory.free_memory("cuda")
    held = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    assert memory.free_memory("cuda") <= free - len(held) // 2
