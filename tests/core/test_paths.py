"""What is at a path: there, not there, or no path at all."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_gen.core import paths
from ppl_gen.core.errors import BadInput

ASKED: list[Callable[..., bool]] = [paths.exists, paths.is_file, paths.is_folder]


def test_what_is_there(elsewhere: Path) -> None:
    Path("file").write_text("")
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("link").symlink_to("folder")
    Path("nowhere").symlink_to("none")
    expected = {
        "file": (True, True, False),
        "folder": (True, False, True),
        "folder/": (True, False, True),
        "link": (True, False, True),
        "pipe": (True, False, False),
        "/dev/null": (True, False, False),
        ".": (True, False, True),
        "..": (True, False, True),
        "none": (False, False, False),
        "nowhere": (False, False, False),
        "file/x": (False, False, False),
        "~": (False, False, False),
        "\udcff": (False, False, False),
    }
    for name, answers in expected.items():
        for path in (name, Path(name)):
            assert tuple(asked(path) for asked in ASKED) == answers, name


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("n" * 256, "File name too long"),
        ("n/" * 2500, "File name too long"),
        ("a\0b", "embedded null"),
        ("loop", "symbolic links"),
    ],
)
@pytest.mark.parametrize("asked", ASKED)
def test_no_path(elsewhere: Path, asked: Callable[..., bool], path: str, words: str) -> None:
    Path("loop").symlink_to("loop")
    for option in ("", "--out"):
        with pytest.raises(BadInput) as error:
            asked(path, option)
        sentence = error.value.sentence
        assert words in sentence and sentence.startswith(option) and len(sentence) < 300 and sentence.isprintable()


def test_no_permission(elsewhere: Path, unprivileged: None) -> None:
    Path("locked").mkdir()
    Path("locked/file").write_text("")
    Path("locked").chmod(0)
    Path("secret").write_text("")
    Path("secret").chmod(0)
    try:
        for asked in ASKED:
            with pytest.raises(BadInput, match=r"^out locked/file: Permission denied$"):
                asked("locked/file", "--out")
        assert paths.is_folder("locked") and paths.is_file("secret")
        with pytest.raises(BadInput, match=r"^data secret: cannot be read: Permission denied$"):
            paths.check_readable("secret", "--data")
    finally:
        Path("locked").chmod(0o700)
    paths.check_readable("locked/file")
    with pytest.raises(FileNotFoundError):
        paths.check_readable("none")
