"""The page of a run."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ppl_gen.core.commands import command, external_class_options, fit_command, words
from ppl_gen.core.errors import warnings_of
from ppl_gen.evaluation import table
from ppl_gen.evaluation.gap_table import gap_rows, gap_units
from ppl_gen.evaluation.quality_table import QUALITY_UNITS, quality_images, quality_rows
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.figures.captions import Caption, captions
from ppl_gen.report.page import Gallery, Picture, render, saving

if TYPE_CHECKING:
    from ppl_gen.core.tables import Row


def write_report(run: RunDirectory) -> None:
    """Write `report.html` from the other files of a run."""
    run.write_file("report.html", saving(report(run)))


def report(run: RunDirectory) -> str:
    """The page of a run, with the numbers and pictures that its directory holds."""
    config, metrics = run.config, run.metrics()
    found = Results.of(run)
    trained = f"{metrics[-1]['epoch']} epochs of training, {metrics[-1]['seconds']:.0f} s" if metrics else ""
    return render(
        "run.html.jinja",
        **_numbers(config, found, trained),
        warnings=_warnings(config, found),
        explored=run.read_json("explorer.json"),
        pictures=list(_pictures(run, found.evaluation or {}, metrics).values()),
        groups=_options(config),
        again=list(_again(run, found)),
    )


@dataclass(frozen=True)
class Results:
    """The JSON files of a run's results; None where there is none, or the weights were trained on since."""

    evaluation: dict[str, Any] | None
    gaps: dict[str, Any] | None
    quality: dict[str, Any] | None

    @classmethod
    def of(cls, run: RunDirectory) -> "Results":
        files = map(run.read_json, ("evaluation.json", "gaps.json", "quality.json"))
        return cls(*(None if not content or run.stale(content) else content for content in files))


# Numbers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Numbers with their errors."""

    rows: "list[Row]"
    caption: str
    units: str
    """Heading of the numbers."""
    note: str
    """Heading of the notes."""


@dataclass(frozen=True)
class Section:
    heading: str
    lead: str
    tables: list[Table]


def _numbers(config: dict[str, Any], found: Results, trained: str) -> dict[str, Any]:
    """Title, first line and sections of a page.

    :param trained: how long the run was trained, in words.
    """
    sections = []
    lead = f"{config['data_name']}, binarization {config['data']['binarization']}; {trained}"
    if (summary := found.evaluation) is not None:
        lead = f"{table.images(summary)}; {summary['checkpoint']} weights; {trained}"
        bounds = Table(table.rows(summary), table.UNITS, "nats", "how")
        sections.append(Section("Bound against log p(x)", "", [bounds]))
    if (gaps := found.gaps) is not None:
        tables = [Table(rows, title or gap_units(gaps), "nats", "Monte Carlo error") for title, rows in gap_rows(gaps)]
        about = f"{table.images(gaps)}; {gaps['checkpoint']} weights; {gaps['seconds']:.0f} s"
        sections.append(Section("Where the gap comes from", about, tables))
    if (quality := found.quality) is not None:
        scores = Table(quality_rows(quality), QUALITY_UNITS, "value", "")
        about = f"{quality_images(quality)}; {quality['checkpoint']} weights"
        sections.append(Section("Samples, to a classifier", about, [scores]))
    return {"title": f"{table.title(config)}, on {config['data_name']}", "lead": lead, "sections": sections}


def _warnings(config: dict[str, Any], found: Results) -> list[str]:
    """What must not be overlooked, a sentence each."""
    warnings = [config.get("data_notice", "")]
    warnings += [] if found.evaluation else ["not evaluated yet, as it is now"]
    for content in (found.evaluation, found.gaps):
        warnings += warnings_of((content or {}).get("observation", ""))
    return [text for text in dict.fromkeys(warnings) if text]


# Pictures and options ------------------------------------------------------------------------------------------


def gallery(run: RunDirectory) -> Gallery:
    """The pictures of a run that there are, those of the package first."""
    return _pictures(run, Results.of(run).evaluation or {}, run.metrics())


def _pictures(run: RunDirectory, summary: dict[str, Any], metrics: list[dict[str, Any]]) -> Gallery:
    files = {path.stem: path for path in sorted((run.path / "figures").glob("*.png")) if not path.name.startswith(".")}
    known = captions(metrics, summary)
    if "iwae" not in summary:  # these are of another evaluation
        files = {name: path for name, path in files.items() if name not in ("bound_against_k", "gap_histogram")}
    found = Gallery()
    for name in sorted(files, key=[*known, *files].index):
        text = name.replace("_", " ")
        own = Caption(text, f"A picture that the model has of its own: {text}")
        found[name] = Picture.of(files[name].read_bytes(), known.get(name, own))
    return found


def _options(config: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Every option of `config.json`, as it was resolved, in groups."""
    groups: dict[str, dict[str, Any]] = {"run": {k: v for k, v in config.items() if not isinstance(v, dict)}}
    groups |= {name: value for name, value in config.items() if isinstance(value, dict) and value}
    return {
        name.replace("_", " "): {key: _written(value) for key, value in options.items()}
        for name, options in groups.items()
    }


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return shlex.join(map(str, value))
    return "none" if value in (None, "") else str(value)


# Commands ------------------------------------------------------------------------------------------------------


def _again(run: RunDirectory, found: Results) -> Iterator[tuple[str, Sequence[str]]]:
    """Comments and the commands that they are of; no command for a run made from Python."""
    # Not for the page of a comparison, which needs no torch.
    from ppl_gen.evaluation.options import EvaluationOptions
    from ppl_gen.evaluation.quality import QualityOptions

    named, made = external_class_options(run.config), fit_command(run.config)
    yield "the run, where there is none yet" if made else "the run was made from Python", made
    resume = command("fit", "--resume", run.path, *named)
    yield "go on with it if it was interrupted, and draw it again", resume
    defaults = asdict(EvaluationOptions())
    if found.evaluation is not None:
        yield _result("these numbers", found.evaluation, command("evaluate", run.path, *named), defaults)
    if found.gaps is not None:
        evaluate = command("evaluate", run.path, *named, "--gaps")
        yield _result("these gaps", found.gaps, evaluate, defaults | {"gaps": True})
    if found.quality is not None:
        defaults = asdict(QualityOptions())
        yield _result("these scores of samples", found.quality, command("quality", run.path, *named), defaults)


def _result(
    text: str, content: dict[str, Any], program: list[str], defaults: dict[str, Any]
) -> tuple[str, Sequence[str]]:
    """A comment, and the command that makes a result again, with the options that it was made with.

    :param content: the JSON file of the result.
    :param defaults: options that need not be written.
    """
    if "options" not in content:
        return f"{text}; an earlier version did not record the options that made them", program
    return text, [*program, *words(content["options"], defaults)]
