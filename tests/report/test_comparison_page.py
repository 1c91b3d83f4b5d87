"""The page of a comparison: whole, valid, escaped, and with the numbers and notes of the table."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pages import BROWSER, Page, check, ids, overflow, plain, rightmost
from written import write

from ppl_gen import compare
from ppl_gen.comparison import Comparison
from ppl_gen.evaluation.columns import layout

Call = Callable[..., tuple[int, str, str]]


def test_the_page_of_a_comparison(elsewhere: Path, call: Call) -> None:
    odd = {"guide": "<i>.py:Mine", "data_notice": "digits <served>", "command": ["fit.py", "vae"]}
    paths = [
        write("first", [-2, -1], [-2, -1]),
        write("one&<b>", [-4, -1], [-3, -1], **odd),
        write("two", [-4, -1], [-4, 0], **odd, **{"training.seed": 1}),
    ]
    status, out, err = call(compare.command, *paths, "--report", "page <1>.html", "--figure", "f.png")
    assert status == 0 and err == "" and Path("f.png").read_bytes()[:4] == b"\x89PNG"
    page = Page(Path("page <1>.html").read_text(encoding="utf-8"))
    check(page)
    comparison = Comparison(paths)
    columns = layout(comparison.rows).columns
    (rows,) = page.tables.values()
    written = [list(columns), *map(list, zip(*columns.values(), strict=True))]
    assert [list(map(plain, row)) for row in rows] == [list(map(plain, row)) for row in written]
    assert rows[1][0] == "normal" and "<i>.py:Mine" in rows[2][0]
    for note in comparison.notes:
        assert note in page.texts["li"] and note in out
    assert {"log-px", "elbo", "gap", "seed", "standard-error", "paired-difference"} <= ids(page)
    assert "The best log p(x) is −1.50 nats: normal." in page.texts["p"]
    assert "between these two sets of weights may be chance" in page.texts["p"]  # 0 is in the interval; one seed
    assert "3 runs compared on digits" in page.texts["h1"] and "2 test images, binarization static" in page.texts["p"]
    assert "Warning: digits <served>" in page.texts["p"] and len(page.warnings()) == 1
    assert "importance sampling, S = 100 -1.50" in str(page.of("img")[0]["alt"])
    assert page.commands("compare") == [[*map(str, paths), "--report", "page <1>.html"]]
    assert page.commands("fit") == [["vae", "--data", "digits"]] * 2
    assert "# first, made from Python" in page.texts["code"]
    assert sorted(path.name for path in elsewhere.iterdir()) == ["f.png", "first", "one&<b>", "page <1>.html", "two"]


def test_a_page_with_files_of_log_weights(elsewhere: Path, call: Call) -> None:
    """One of the run's images, and one of unknown images, which the picture's caption names as well."""
    write("run", [-2, -1, -3], [-2, -1, -2], **{"evaluation.images_sha256": "ab" * 32})
    weights = np.random.default_rng(0).normal([-4, -3, -4], 1, size=(100, 3))
    np.savez("same.npz", log_weights=weights, images_sha256="ab" * 32, observation="probability")
    np.savez("unknown.npz", log_weights=weights[:, :2] - 4, name="Stan <b>", observation="probability")
    assert call(compare.command, "run", "same.npz", "unknown.npz", "--report", "r.html")[::2] == (0, "")
    page = Page(Path("r.html").read_text(encoding="utf-8"))
    check(page)
    assert "1 run and 2 files of log weights compared on digits" in page.texts["h1"]
    assert "on 3 test images, binarization static, and on images that may differ" in page.texts["p"]
    assert "no images_sha256: unknown.npz (2 images)" in page.texts["li"]
    (rows,) = page.tables.values()
    assert [row[0] for row in rows[1:]] == ["vae", "same", "Stan <b>"]
    assert ["unpaired" in "".join(row) for row in rows] == [False, False, False, True]
    assert "The bars of Stan <b> are not paired: their images may be others." in page.texts["figcaption"]
    assert "# same.npz, log weights from elsewhere" in page.texts["code"]
    assert page.commands("compare") == [["run", "same.npz", "unknown.npz", "--report", "r.html"]]
    assert call(compare.command, "unknown.npz", "run", "--report", "r.html")[::2] == (0, "")
    assert "The two are unpaired" in Page(Path("r.html").read_text(encoding="utf-8")).texts["p"]
    assert call(compare.command, "same.npz", "--report", "r.html")[::2] == (0, "")
    page = Page(Path("r.html").read_text(encoding="utf-8"))
    check(page)
    assert (
        "1 file of log weights compared\n" in page.texts["h1"] + "\n"
        and "on the same images: 3 images" in page.texts["p"]
    )


def test_a_comparison_of_densities(elsewhere: Path, call: Call) -> None:
    path = write("run", [-2, -1], [-2, -1], **{"evaluation.observation": "density"})
    assert call(compare.command, path, "--report", "r.html")[0] == 0
    page = Page(Path("r.html").read_text(encoding="utf-8"))
    assert page.warnings() == ["warning"] and "densities" in page.texts["p"] and "densities" not in page.texts["li"]


def test_pages_that_cannot_be_written(elsewhere: Path, call: Call) -> None:
    path = write("run", [-2, -1], [-2, -1])
    Path("folder.html").mkdir()
    for file, words in (
        ("r.txt", "--report r.txt: must end in .html"),
        ("no/r.html", "--report no/r.html: is in a directory that does not exist"),
        ("folder.html", "--report folder.html: is a directory"),
    ):
        status, out, err = call(compare.command, path, "--report", file)
        assert status == 2 and out == "" and words in err and err.count("\n") == 1, err


def test_a_comparison_starts_without_torch(elsewhere: Path) -> None:
    path = write("run", [-2, -1], [-2, -1])
    code = "import sys; from ppl_gen import compare; compare.command(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, str(path), "--report", "r.html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_the_page_does_not_scroll_sideways(elsewhere: Path, call: Call, tmp_path: Path) -> None:
    """On a phone and on a desk; a wide table scrolls in a box of its own. On a phone the box need not scroll: no number
    ends outside the window, not even one with two errors and an interval."""
    own = {"guide": f"{5 * 'folder/'}my.py:Mine"}
    compared = [
        write("first", [-123, -234], [-123, -234]),
        write("again", [-124, -238], [-125, -233], **{"training.seed": 1}),
        write("second", [-456, -321], [-423, -321], **own),
        write("third", [-467, -331], [-433, -310], **own, **{"training.seed": 1}),
    ]
    assert call(compare.command, *compared, "--report", "compared.html")[0] == 0
    for width in (390, 1280):
        assert overflow(Path("compared.html").read_text(encoding="utf-8"), width, tmp_path) <= 0
    assert rightmost(Path("compared.html").read_text(encoding="utf-8"), 390, tmp_path, ".cards .piece") <= 374
