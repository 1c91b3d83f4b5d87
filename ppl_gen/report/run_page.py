"""The page of a run."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ppl_gen.core.commands import command, external_class_options, fit_command
from ppl_gen.core.errors import BadInput, warnings_of
from ppl_gen.evaluation import table
from ppl_gen.evaluation.distances import Distances, distances
from ppl_gen.evaluation.reading import read
from ppl_gen.experiment.run_directory import Json, RunDirectory
from ppl_gen.figures.captions import Caption
from ppl_gen.report.page import Gallery, Picture, render, saving
from ppl_gen.report.sections import results, sections


def write_report(run: RunDirectory) -> None:
    """Write `report.html` from the other files of a run."""
    run.write_file("report.html", saving(report(run)))


def report(run: RunDirectory) -> str:
    """The page of a run as HTML."""
    config, metrics, contents = run.config, run.metrics(), results(run)
    evaluation, shown = contents.get("bounds"), sections(run, contents)
    trained = f"{metrics[-1]['epoch']} epochs of training, {metrics[-1]['seconds']:.0f} s" if metrics else ""
    about = f"{config['data_name']}, binarization {config['data']['binarization']}"
    if evaluation is not None:
        about = f"{table.images(evaluation)}; {evaluation['checkpoint']} weights"
    return render(
        "run.html.jinja",
        title=f"{table.title(config)}, on {config['data_name']}",
        lead=f"{about}; {trained}",
        sections=shown,
        warnings=_warnings(config, contents),
        explored=run.read_json("explorer.json"),
        pictures=list(_pictures(run, evaluation or {}, metrics).values()),
        groups=_options(config),
        again=[*_again(run), *(each.again for each in shown)],
    )


def _warnings(config: Json, found: dict[str, Json]) -> list[str]:
    """Warnings at the top of the page, a sentence each."""
    warnings = [config.get("data_notice", "")]
    warnings += [] if "bounds" in found else ["not evaluated yet, as it is now"]
    for content in found.values():
        warnings += warnings_of(content.get("observation", ""))
    return [text for text in dict.fromkeys(warnings) if text]


# Pictures and options ------------------------------------------------------------------------------------------


def gallery(run: RunDirectory) -> Gallery:
    """The pictures in the run directory, those of the package first."""
    return _pictures(run, results(run).get("bounds", {}), run.metrics())


def _pictures(run: RunDirectory, summary: Json, metrics: list[Json]) -> Gallery:
    files = {path.stem: path for path in sorted((run.path / "figures").glob("*.png")) if not path.name.startswith(".")}
    # Imported here, because they import torch and matplotlib.
    from ppl_gen.report.captions import captions
    from ppl_gen.report.pictures import kinds

    known = captions(metrics, summary, _distances(run) if "iwae" in summary else None)
    for module in kinds().values():
        known |= vars(module).get("CAPTIONS", {})
    if "iwae" not in summary:  # these pictures are of another evaluation
        files = {name: path for name, path in files.items() if name not in ("how_far", "gap_histogram")}
    gallery = Gallery()
    for name in sorted(files, key=[*known, *files].index):
        text = name.replace("_", " ")
        caption = Caption(text, f"A picture that the model has of its own: {text}")
        gallery[name] = Picture.of(files[name].read_bytes(), known.get(name, caption))
    return gallery


def _distances(run: RunDirectory) -> Distances | None:
    """The bounds and estimates of the run; None without a complete evaluation."""
    try:
        return distances([read(run.path)])
    except BadInput:
        return None


def _options(config: Json) -> dict[str, dict[str, str]]:
    """Every option of `config.json` as text, in groups."""
    groups: dict[str, Json] = {"run": {k: v for k, v in config.items() if not isinstance(v, dict)}}
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


def _again(run: RunDirectory) -> Iterator[tuple[str, Sequence[str]]]:
    """Comments, each with its command. A run that was made from Python has no command that makes it."""
    made = fit_command(run.config)
    yield "the run, where there is none yet" if made else "the run was made from Python", made
    resume = command("fit", "--resume", run.path, *external_class_options(run.config))
    yield "go on with it if it was interrupted, and draw it again", resume
