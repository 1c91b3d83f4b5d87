"""The page of a run."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ppl_gen.core.calls import fit_call, of_session, open_call, to_define
from ppl_gen.core.commands import command, external_class_options, fit_command, resuming_options, sweep_command
from ppl_gen.core.errors import BadInput, warnings_of
from ppl_gen.core.files import read_bytes
from ppl_gen.core.tables import duration, named
from ppl_gen.evaluation import table
from ppl_gen.evaluation.distances import Distances, distances
from ppl_gen.evaluation.entries import quantity_of
from ppl_gen.evaluation.reading import read
from ppl_gen.experiment.run_directory import Json, RunDirectory
from ppl_gen.figures.captions import Caption
from ppl_gen.report.main_result import MainResult, main_result
from ppl_gen.report.options import default_config, options
from ppl_gen.report.page import Gallery, Picture, encoded, render
from ppl_gen.report.sections import Section, results, sections


def write_report(run: RunDirectory) -> None:
    """Write `report.html` from the other files of a run."""
    run.write_file("report.html", encoded(report(run)))


def report(run: RunDirectory) -> str:
    """The page of a run as HTML."""
    config, metrics, contents = run.config, run.metrics(), results(run)
    evaluation, shown = contents.get("bounds"), sections(run, contents)
    main = None if evaluation is None else main_result(evaluation, [run.path, *external_class_options(config)])
    return render(
        "run.html.jinja",
        quantity_of(run),
        title=f"{table.title(config)}, on {_data(config)}",
        lead=_lead(config, metrics),
        main=main,
        next=_next(run, main),
        sections=shown,
        warnings=_warnings(config, contents),
        explored=run.find_json("explorer.json"),
        pictures=list(_pictures(run, evaluation or {}, metrics).values()),
        options=options(config),
        again=_again(run, shown),
    )


def _lead(config: Json, metrics: list[Json]) -> str:
    """The sentence that says what the page is."""
    trained = ""
    if metrics:
        count, seconds = metrics[-1]["epoch"], metrics[-1]["seconds"]
        trained = f", trained for {count} epoch{'s' if count != 1 else ''} in {duration(seconds)}"
    return (
        f"This page is the report of one run: the model {table.shown(config['model'])} with the guide "
        f"{table.shown(config['guide'])}{trained} on {_data(config)} (binarization "
        f"{config['data']['binarization']}{_missing(config['data'].get('missing'))})."
    )


def _missing(option: float | str | None) -> str:
    """The option of missing pixels in words, after a comma; empty without one."""
    if option is None:
        return ""
    told = "those that are NaN or masked" if option == "nan" else f"those of {option}"
    share = f"each with probability {option:g}" if isinstance(option, int | float) else told
    return f", pixels missing: {share}"


def _data(config: Json) -> str:
    """The name of the data set."""
    return "images of a Python session" if "data" in of_session(config) else str(config["data_name"])


def _warnings(config: Json, found: dict[str, Json]) -> list[str]:
    """Warnings at the top of the page, a sentence each."""
    warnings = [config.get("data_notice", "")]
    warnings += [] if "bounds" in found else ["not evaluated yet, as it is now"]
    for content in found.values():
        warnings += warnings_of(content.get("observation", ""))
    return [text for text in dict.fromkeys(warnings) if text]


# Pictures ------------------------------------------------------------------------------------------------------

_OF_IMAGES = ("reconstructions", "posterior", "posteriors", "responsibilities")
"""Pictures that show images as they are, with missing pixels if they have any."""


def gallery(run: RunDirectory) -> Gallery:
    """The pictures in the run directory, those of the package first."""
    return _pictures(run, results(run).get("bounds", {}), run.metrics())


def _pictures(run: RunDirectory, summary: Json, metrics: list[Json]) -> Gallery:
    folder = run.path / "figures"
    found = [] if folder.is_symlink() else sorted(folder.glob("*.png"))  # a link may lead to pictures of others
    files = {path.stem: path for path in found if not path.name.startswith(".")}
    # Imported here, because they import torch and matplotlib.
    from ppl_gen.report.captions import captions
    from ppl_gen.report.pictures import kinds

    explained = run.find_json("responsibilities.json")
    known = captions(metrics, summary, _distances(run) if "iwae" in summary else None, explained)
    for module in kinds().values():
        known |= vars(module).get("CAPTIONS", {})
    if "iwae" not in summary:  # these pictures are of another evaluation
        files = {name: path for name, path in files.items() if name not in ("how_far", "gap_histogram")}
    if run.config["data"].get("missing") is not None:
        known |= {name: known[name].followed_by("Missing pixels are grey.") for name in _OF_IMAGES if name in known}
    gallery, rename = Gallery(), partial(named, quantity=quantity_of(run))
    for name in sorted(files, key=[*known, *files].index):
        text = name.replace("_", " ")
        caption = Caption(text, f"A picture that the model has of its own: {text}")
        try:
            gallery[name] = Picture.of(read_bytes(files[name]), known.get(name, caption).changed(rename))
        except BadInput as error:
            print(f"warning: {files[name]} is left out of the page: {error}", file=sys.stderr)
    return gallery


def _distances(run: RunDirectory) -> Distances | None:
    """The bounds and estimates of the run; None without a complete evaluation."""
    try:
        return distances([read(run.path)])
    except BadInput:
        return None


# Commands ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MakeAgain:
    """How to make a run and its results again: calls of Python, and commands."""

    calls: list[tuple[str, str]]
    """Comments with calls; empty for a run made on the command line."""
    commands: Sequence[tuple[str, Sequence[str]]]
    """Comments with the words of a command; empty if a command cannot have the classes or the images of the run."""


def _next(run: RunDirectory, main: MainResult | None) -> MakeAgain | None:
    """What may settle log p(x); None if there is nothing to settle, or nothing to try."""
    if main is None or not main.command:
        return None
    if of_session(run.config):
        return MakeAgain([("", open_call(run.config, run.path)), ("", main.call)], [])
    return MakeAgain([], [("", main.command)])


def _again(run: RunDirectory, shown: Sequence[Section]) -> MakeAgain:
    made, swept, own = fit_command(run.config), sweep_command(run.config), of_session(run.config)
    calls = [] if made or swept else list(_calls(run, own, shown))
    commands = [] if own else [(each.again.text, each.again.words) for each in shown]
    if not own:
        resume = command("fit", "--resume", run.path, *resuming_options(run.config))
        commands.insert(0, ("continue the run if it was interrupted, and draw its pictures again", resume))
    if made:
        commands.insert(0, ("the run, if there is none at this path", made))
    if swept:
        commands.insert(0, ("the sweep that made the run; it keeps the runs that are there", swept))
    return MakeAgain(calls, commands)


def _calls(run: RunDirectory, own: dict[str, str], shown: Sequence[Section]) -> Iterator[tuple[str, str]]:
    """The calls that make a run again that was made from Python. Results are there if no command can make them."""
    config = run.config
    about = "this run was made from Python"
    if own:
        about += f"; define {' and '.join(to_define(config))} first, as in the session that made it"
    yield about, "import ppl_gen"
    yield "the run, if there is none at this path", fit_call(config, default_config(config), run.path)
    if not own:
        yield "open it again", open_call(config, run.path)
        return
    yield (
        "open it again; the run directory holds no code and no images of yours, so give them again",
        open_call(config, run.path),
    )
    yield "continue it if it was interrupted, and draw its pictures again", "run.resume()"
    for each in shown:
        if each.again.checkpoint != "last":
            yield "", open_call(config, run.path, checkpoint=each.again.checkpoint)
        yield each.again.text, each.again.call
