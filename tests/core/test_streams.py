"""Standard output and standard error that never fail: characters, closed pipes, full disks."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ppl_gen
from ppl_gen.core.streams import to_ascii

SAYS = """
import sys, warnings
from ppl_gen.core import cli
from ppl_gen.core.progress import Progress

def command(arguments):
    with Progress(3, "step") as progress:
        for step in range(3):
            print(f"step {step} ± 0.5 ≥ −1 …", flush=True)
            progress.advance()
            progress.note("note ±", str(step))
    warnings.warn("a warning ±")
    print("x" * 100_000)  # more than a pipe holds
    open("done", "w").close()
    print("written to done")

cli.main(command)
"""
FULL = "error: standard output cannot be written: No space left on device; its last line: written to done"
CONDITIONS = {  # of the shell, after the command: exit status, and the end of standard error, where it is seen
    "plain": ("", 0, None),
    "ascii": ("", 0, None),
    "cp1252": ("", 0, None),
    "C locale": ("", 0, None),
    "unbuffered": ("| head -1", 0, None),
    "head": ("| head -1", 0, None),
    "head of stderr": ("2>&1 >/dev/null | head -1", 0, None),
    "head of both": ("2>&1 | head -1", 0, None),
    "stdout closed": (">&-", 0, None),
    "stderr closed": ("2>&-", 0, None),
    "all closed": ("<&- >&- 2>&-", 0, None),
    "full": (">/dev/full", 1, FULL),
    "stderr full": ("2>/dev/full", 0, None),
    "both full": (">/dev/full 2>/dev/full", 1, None),
    "not for writing": ("</dev/null >&0", 1, "error: standard output cannot be written: Bad file descriptor; its last"),
}
ENVIRONMENTS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "unbuffered": {"PYTHONUNBUFFERED": "1"},
}


def under(condition: str, words: list[str]) -> tuple[int, str, str]:
    """Run Python under a condition of its streams; returns its exit status, standard output and standard error."""
    after = CONDITIONS[condition][0]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {after}; exit ${{PIPESTATUS[0]}}', "bash", sys.executable, *words],
        env=os.environ | {"PYTHONPATH": str(Path(ppl_gen.__file__).parents[1])} | ENVIRONMENTS.get(condition, {}),
        capture_output=True,
    )
    encoding = "cp1252" if condition == "cp1252" else "utf-8"
    return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)


QUICK = ("ascii", "head", "head of both", "stdout closed", "full")


@pytest.mark.parametrize(
    "condition", [pytest.param(each, marks=() if each in QUICK else pytest.mark.attack) for each in CONDITIONS]
)
def test_the_work_is_done_whoever_reads(elsewhere: Path, condition: str) -> None:
    _, expected, last = CONDITIONS[condition]
    Path("says.py").write_text(SAYS, encoding="utf-8")
    status, out, err = under(condition, ["says.py"])
    assert status == expected and Path("done").exists(), err
    assert "Traceback" not in err and "Exception ignored" not in err and "Error" not in out + err
    if condition in ("ascii", "C locale"):
        assert out.startswith("step 0 +- 0.5 >= -1 ...\n") and "note +-  0" in err and "a warning +-" in err
    if condition == "cp1252":  # which has some of the characters
        assert out.startswith("step 0 ± 0.5 >= -1 …")
    if condition in ("plain", "ascii", "cp1252", "C locale", "stderr closed", "stderr full"):
        assert out.endswith("x\nwritten to done\n")
    if last is not None:
        assert err.splitlines()[-1].startswith(last)


def test_every_character_of_the_package_has_a_plain_form() -> None:
    """In words that a person reads: `?` stands for none of them."""
    texts = (
        node.value
        for path in Path(ppl_gen.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    without = set("火\udc80\udcff")
    characters = {each for text in texts for each in text if not each.isascii()} - without
    assert len(characters) > 15
    assert [each for each in characters if "?" in to_ascii(each) or not to_ascii(each).isascii()] == []
    assert "".join(map(to_ascii, "±−≥×…→²Δσ⁻é")) == "+--" + ">=x...->2Deltasigma-e"


def test_a_name_that_is_no_text_is_written_as_it_is(elsewhere: Path) -> None:
    said = "from ppl_gen.core import cli; cli.main(lambda _: print('a\\udcffb'))"
    assert subprocess.run([sys.executable, "-c", said], capture_output=True).stdout == b"a\xffb\n"
