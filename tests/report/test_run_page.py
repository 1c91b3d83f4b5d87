"""The page of a run: whole, valid, escaped, and with the numbers and commands of the run."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pages import BROWSER, Page, check, ids, overflow, plain, rightmost

from ppl_gen import evaluate, fit
from ppl_gen.core import cli
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment.config import Given, config_of
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.inference.annealed import Annealing
from ppl_gen.report import page as pages
from ppl_gen.report.run_page import report

Call = Callable[..., tuple[int, str, str]]
ODD = "<b>&\"x' --y"
QUICK = ("--data=digits", "--train-size", "300", "--epochs", "2", "--num-samples", "50", "--hidden-dims", "16")


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made on a command line, whose directory's name has to be escaped."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = [sys.executable, "-m", "ppl_gen.fit", "vae", *QUICK, "--out", ODD]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"the page with all results is {ODD}/report.html" in done.stdout
    return folder / ODD


@pytest.fixture
def run(fitted: Path, elsewhere: Path) -> Path:
    """A copy of it in the working directory."""
    shutil.copytree(fitted, ODD)
    return Path(ODD)


def page_of(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


def leaves(content: Any) -> Iterator[Any]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield key
            yield from leaves(value)
    else:
        yield content


def test_the_page_of_a_run(run: Path) -> None:
    page = page_of(run)
    check(page)
    summary = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    for word in ("vae", "guide normal", "digits"):
        assert word in page.texts["h1"]
    assert "300 test images of digits, binarization dynamic" in page.texts["p"]
    assert len(page.of("img")) == len(list((run / "figures").iterdir())) > 4
    alts = " ".join(str(picture["alt"]) for picture in page.of("img"))
    assert "the model has of its own" not in alts  # so that each says what it shows
    assert f": ELBO {summary['elbo']['mean']:.2f}, IWAE-10 {summary['iwae']['10']['mean']:.2f}, importance" in alts
    assert page.warnings() == []
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == [".lock"]


def test_the_explorer_is_in_it(run: Path) -> None:
    """Its data and its one script, which no text of the data can end; without the data, no script at all."""
    page, content = page_of(run), json.loads((run / "explorer.json").read_text(encoding="utf-8"))
    assert page.of("script") == [{"type": "application/json", "id": "explorer-data"}, {}]
    script = Path(pages.__file__).with_name("explorer.js").read_text(encoding="utf-8")
    assert json.loads(page.texts["script"].removesuffix(script)) == content
    across, up = content["order"][:2]  # the units of the plane at first, as of the pictures of the latent space
    assert f"z[{across}] to the right and z[{up}] upwards" in page.texts["p"]
    rounding = content["rounding"]
    assert f"Over {rounding['images']} images, that moves a pixel by at most {rounding['largest']:.2g}/255" in " ".join(
        page.texts["p"].split()
    )
    (run / "explorer.json").write_text(json.dumps(content | {"more": "</script><b>&lt;<!--"}))
    page = Page(report(RunDirectory.open(run)))
    check(page)
    assert json.loads(page.texts["script"].removesuffix(script))["more"] == "</script><b>&lt;<!--"
    (run / "explorer.json").unlink()
    page = Page(report(RunDirectory.open(run)))
    assert page.of("script") == [] and "Explore" not in page.texts["h2"]


def test_its_numbers_are_those_of_the_evaluation(run: Path) -> None:
    summary = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    (rows,) = (rows for caption, rows in page_of(run).tables.items() if caption.startswith("nats per image"))
    cells = {row[0]: row[1:] for row in rows}
    at_least = {True: "at least ", False: ""}[summary["gap"]["at_least"]]
    for label, entry, prefix in (
        ("ELBO", summary["elbo"], ""),
        ("reconstruction", summary["reconstruction"], ""),
        ("KL", summary["kl"], ""),
        ("IWAE bound, k = 10", summary["iwae"]["10"], ""),
        ("log p(x)", summary["log_px"], at_least),
        ("gap: log p(x) − ELBO", summary["gap"], at_least),
    ):
        assert list(map(plain, cells[label][:2])) == [f"{prefix}{entry['mean']:.2f}", f"± {entry['se']:.2f}"]
    assert cells["parameters"] == [f"{summary['num_parameters']:,}"]
    assert f"{summary['ess']['median']:.1f}" in cells["effective sample size"][0]
    assert f"{summary['khat']['fraction_above_threshold']:.1%}" in cells["Pareto k-hat"][0]
    found = list(leaves({key: value for key, value in summary.items() if key != "options"}))
    known = {form.format(value) for value in found if not isinstance(value, str) for form in FORMS}
    known |= {value for value in found if isinstance(value, str)}
    for row in rows:
        for number in re.findall(r"-?\d+(?:\.\d+)?%?", plain(" ".join(row))):
            assert number in known, row


FORMS = ("{:.0f}", "{:.1f}", "{:.2f}", "{:.4f}", "{:.1%}")


def test_its_result_is_said_in_words(run: Path) -> None:
    """ELBO, log p(x) and gap; why it reads "at least", and the command that is recorded as the next one."""
    summary = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    summary.pop("next_options", None)
    elbo, gap = summary["elbo"]["mean"], summary["gap"]["mean"]
    for at_least in (False, True):
        khat = summary["khat"] | {"fraction_above_threshold": 0.28, "fraction_unknown": 0.0}
        changed = {"gap": summary["gap"] | {"at_least": at_least}, "khat": khat}
        changed |= {"next_options": "--num-samples auto"} if at_least else {}
        (run / "evaluation.json").write_text(json.dumps(summary | changed))
        page, word = Page(report(RunDirectory.open(run))), "at least " if at_least else ""
        said = plain(page.texts["p"]).replace("\N{WORD JOINER}\N{NO-BREAK SPACE}", " ")
        assert f"The ELBO is {elbo:.2f} nats per image. log p(x) is {word}{elbo + gap:.2f} nats" in said
        assert f"So the gap, KL(q(z | x) ‖ p(z | x)), is {word}{gap:.2f} nats." in said
        assert ("because k-hat is too high on 28.0% of the images" in said) == at_least
        assert (page.commands("evaluate")[0] == [ODD, "--num-samples", "auto"]) == at_least
        assert "to settle more images" not in page.texts["table"]


def test_its_terms_are_explained(run: Path) -> None:
    """Those of the table, in a glossary that has no others."""
    page = page_of(run)
    shown = ids(page)
    for term in ("nats", "elbo", "log-px", "gap", "iwae-bound", "k-hat", "effective-sample-size", "second-opinion"):
        assert term in shown
    for term in ("blind", "jackknife", "active-units", "standard-error", "monte-carlo-error", "binarization"):
        assert term in shown
    assert not {"annealing", "quadrature", "coverage", "fréchet-distance", "amortization-gap"} & shown


def test_its_options_are_those_of_the_configuration(run: Path) -> None:
    """Those that differ from their defaults stand first, and each option stands once."""
    page, config = page_of(run), json.loads((run / "config.json").read_text(encoding="utf-8"))
    (_, *rows) = page.tables["Chosen options"]
    chosen = {name: (value, default) for name, value, default in rows}
    assert chosen == {
        "model": ("vae", ""),
        "guide": ("normal", "normal"),
        "data": ("digits", ""),
        "hidden_dims": ("16", "512"),
        "train_size": ("300", "none"),
        "epochs": ("2", "20"),
        "num_samples": ("50", "1,000"),
    }
    for part in ("model_options", "guide_options", "data", "training"):
        folded = dict(page.tables.get(part.replace("_", " "), {}))
        assert folded.keys() | (chosen.keys() & config[part].keys()) == config[part].keys()
        assert not folded.keys() & chosen.keys() - {"hidden_dims"}
    assert dict(page.tables["versions"]) == config["versions"]
    record = dict(page.tables["record"])
    assert shlex.split(record["command"]) == config["command"]
    assert record["git_commit"] == (config["git_commit"] or "none")
    in_parts = sum(len(config[part]) for part in ("model_options", "guide_options", "data", "training"))
    folded_of_run = ("estimator", "init_from", "fixed_model")
    others = in_parts - len(("data", "hidden_dims", "train_size", "epochs")) + len(folded_of_run)
    assert len(page.of("details")) == 2 and page.texts["summary"].startswith(f"{others} more options")


def test_its_commands_make_it_again(run: Path) -> None:
    """As `fit` and `evaluate` read them, with a path of odd characters."""
    options = EvaluationOptions(num_images=300, num_samples=50, estimator="importance")
    page, opened = page_of(run), RunDirectory.open(run)
    again, (resume, path) = page.commands("fit")
    config, chosen = fit.parse(again)
    assert config == config_of(opened, Given()) and chosen.out == Path(ODD)
    assert (resume, path) == ("--resume", ODD)
    *_, arguments = page.commands("evaluate")
    given = cli.parse(evaluate.Command, arguments, "", "")
    assert given.run == Path(ODD)
    assert given.options == options


def test_what_is_not_on_the_command_line(run: Path) -> None:
    """The data set that was found, classes of one's own, and runs made from Python."""
    opened = RunDirectory.open(run)
    opened.config |= {"command": ["x/fit.py", "vae"], "guide": "my <i>.py:Mine", "data_notice": "digits <served>"}
    page = Page(report(opened))
    assert page.commands("fit")[0] == ["vae", "--data", "digits"]
    assert page.commands("fit")[1] == ["--resume", ODD, "--guide", "my <i>.py:Mine"]
    assert len(page.warnings()) == 1 and "Warning: digits <served>" in page.texts["p"]
    opened.config["command"] = ["study.py", "7"]
    page = Page(report(opened))
    assert len(page.commands("fit")) == 1 and "made from Python" in page.python
    fit_again, open_again = [node.value for node in ast.parse(page.python).body if isinstance(node, ast.Assign)]
    assert ast.unparse(fit_again).startswith("ppl_gen.Run.fit('vae', guide='my <i>.py:Mine', data='digits'")
    assert ast.unparse(open_again) == ast.unparse(ast.parse(f"ppl_gen.Run.open({ODD!r}, guide='my <i>.py:Mine')"))
    opened.config |= {"guide": "class:Mine", "data": opened.config["data"] | {"data": "array"}}
    page = Page(report(opened))
    assert page.commands("fit") == page.commands("evaluate") == []  # they would not have the class or the images
    assert (
        "run.evaluate(num_images=300, num_samples=50, estimator=" in page.python
        and "guide=Mine, data=images" in page.python
    )


def test_captions_are_true_of_the_model_at_hand(run: Path) -> None:
    """Of a GAN's curves, of one that is exact, of a plane without other units, of a guide that is the prior."""
    assert "Dashed lines are of the validation split" in page_of(run).texts["figcaption"]
    assert "The z are the same if the prior is not learned" in page_of(run).texts["figcaption"]
    assert "The other units have sliders" in page_of(run).texts["p"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    def with_terms(terms: dict[str, float]) -> Page:
        kept = [{**line, "train": terms, "validation": terms} for line in lines]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
        return Page(report(RunDirectory.open(run)))

    page = with_terms(dict.fromkeys(("loss_generator", "loss_discriminator", "d_real", "d_fake", "value"), 0.5))
    assert "the validation split" not in page.texts["figcaption"]
    assert "both losses, the means of D(x) and D(G(z))" in page.texts["figcaption"]
    alts = " ".join(str(picture["alt"]) for picture in with_terms({"elbo": -8.5}).of("img"))
    assert "validation log p(x) -8.50 before training" in alts and "ELBO -8.50" not in alts
    explored = json.loads((run / "explorer.json").read_text(encoding="utf-8"))
    (run / "explorer.json").write_text(json.dumps(explored | {"order": [0, 1]}))
    summary = json.loads((run / "evaluation.json").read_text(encoding="utf-8")) | {"active_units": 0}
    for guide, words in (
        ("normal", "z is not used: its mean is the same for every image"),
        ("prior", "the guide is the prior"),
    ):
        (run / "evaluation.json").write_text(json.dumps(summary | {"guide": guide}))
        page = Page(report(RunDirectory.open(run)))
        assert words in page.texts["td"] and ("--kl-warmup" in page.texts["td"]) == (guide == "normal")
    assert "sliders" not in page.texts["p"]


@pytest.mark.parametrize(
    ("observation", "words"), [("cross-entropy", "do not bound the log-probability"), ("density", "cannot be compared")]
)
def test_warnings_are_prominent(run: Path, observation: str, words: str) -> None:
    summary = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    (run / "evaluation.json").write_text(json.dumps(summary | {"observation": observation}))
    page = Page(report(RunDirectory.open(run)))
    assert page.warnings() == ["warning"] and words in page.texts["p"] and "Warning:" in page.texts["strong"]


def test_whatever_the_directory_holds(run: Path) -> None:
    """Numbers that are not finite; pictures of other commands; no evaluation, or one without samples."""
    summary = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    summary["elbo"] = {"mean": None, "se": None, "mc_se": None}
    (run / "evaluation.json").write_text(json.dumps(summary))
    shutil.copy(run / "figures/samples.png", run / "figures/my_<own>.png")
    page = Page(report(RunDirectory.open(run)))
    check(page)
    assert "nan" in page.tables["nats per image ± standard error over images; larger is better"][1]
    assert "my <own>" in page.texts["figcaption"]
    for key in ("iwae", "gap", "ess", "khat", "kl", "reconstruction"):
        del summary[key]
    summary["log_px"] = {"mean": -1.0, "se": 0.1, "estimator": "exact"}
    (run / "evaluation.json").write_text(json.dumps(summary))
    page = Page(report(RunDirectory.open(run)))
    assert not any("IWAE" in str(picture["alt"]) for picture in page.of("img"))
    (run / "evaluation.json").unlink()
    page = Page(report(RunDirectory.open(run)))
    assert len(page.warnings()) == 1 and "not evaluated yet" in page.texts["p"]


def test_evaluating_writes_it_again(run: Path, call: Call) -> None:
    """With other images and estimators, and with gaps; the commands for them are on the page."""
    chosen = (
        "--split",
        "validation",
        "--num-images",
        "9",
        "--num-samples",
        "40",
        "--checkpoint",
        "best",
        "--seed",
        "3",
    )
    annealed = ("--annealed.num-temperatures", "20", "--annealed.leapfrog-steps", "2", "--annealed.start", "guide")
    arguments = (run, *chosen, "--estimator", "annealed", *annealed, "--sandwich", "4")
    assert call(evaluate.command, *arguments)[0] == 0
    asked = cli.parse(evaluate.Command, list(map(str, arguments)), "", "").options
    page = page_of(run)
    check(page)
    assert "9 validation images of digits" in page.texts["p"] and "best weights" in page.texts["p"]
    for words in (
        "annealed, 16 chains x 20 temperatures from the guide",
        "images from the model",
        "beyond their errors",
    ):
        assert words in page.texts["table"]
    *_, again = page.commands("evaluate")
    options = cli.parse(evaluate.Command, again, "", "").options
    assert options == asked
    assert options.annealed == Annealing(num_temperatures=20, leapfrog_steps=2, start="guide")

    gaps = (run, "--gaps", "--num-images", "3", "--num-samples", "30")
    assert call(evaluate.command, *gaps)[0] == 0
    asked = cli.parse(evaluate.Command, list(map(str, gaps)), "", "").options
    page = page_of(run)
    check(page)
    contexts = json.loads((run / "gaps.json").read_text(encoding="utf-8"))["contexts"]
    (rows,) = (rows for caption, rows in page.tables.items() if "from 30 samples" in caption)
    cells = {row[0]: row[1:] for row in rows}
    assert plain(cells["amortization gap"][0]) == f"{contexts['amortization']['mean']:.2f}"
    *_, again = page.commands("evaluate")
    assert cli.parse(evaluate.Command, again, "", "").options == replace(asked, estimator="importance")


def test_several_proposals_are_in_the_command(run: Path, call: Call) -> None:
    arguments = (run, "--num-images", "5", "--num-samples", "30", "--prior-share", "0.25", "--temperature", "1.5")
    assert call(evaluate.command, *arguments)[0] == 0
    *_, again = page_of(run).commands("evaluate")
    given = cli.parse(evaluate.Command, again, "", "").options
    assert (given.prior_share, given.temperature, given.estimator) == (0.25, 1.5, "importance")
    assert (given.num_images, given.num_samples) == (5, 30)

    Path("mine.py").write_text("from ppl_gen.guides.normal import Normal\n\n\nclass Mine(Normal):\n    pass\n")
    refit = (
        "--init-from",
        run,
        "--refit-guide",
        "mine.py:Mine",
        "--epochs",
        "1",
        "--num-samples",
        "5",
        "--out",
        "mine",
    )
    assert call(fit.command, *refit)[0] == 0
    arguments = (run, "--num-images", "5", "--proposals", "mine", "--proposal-guides", "mine.py:Mine")
    assert call(evaluate.command, *arguments)[0] == 0
    *_, again = page_of(run).commands("evaluate")
    given = cli.parse(evaluate.Command, again, "", "").options
    assert given.proposals == (Path("mine"),) and given.proposal_guides == ("mine.py:Mine",)


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_the_page_does_not_scroll_sideways(run: Path, tmp_path: Path) -> None:
    """On a phone and on a desk; a wide table scrolls in a box of its own."""
    opened = RunDirectory.open(Path(shutil.copytree(run, "a-name-" + 30 * "long-")))
    opened.config["guide"] = f"{'folder/' * 20}file.py:Guide"
    Path("page.html").write_text(report(opened), encoding="utf-8")
    for file in (run / "report.html", Path("page.html")):
        for width in (390, 1280):
            assert overflow(file.read_text(encoding="utf-8"), width, tmp_path) <= 0, f"{file} at {width}"
    assert rightmost((run / "report.html").read_text(encoding="utf-8"), 390, tmp_path, ".numbers .note") <= 390
    wide = '<!DOCTYPE html><html lang="en"><body><pre>' + 200 * "x" + "</pre></body></html>"
    assert overflow(wide, 390, tmp_path) > 0  # so that it is measured
