"""A run, or several side by side, as one page of HTML: numbers, pictures, options, and the commands that make it again.

A page is whole in itself: its style and its pictures are in it. It loads nothing, and runs nothing but `explorer.js`,
which is in it too.
"""

import json
import shlex
import struct
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_gen.core.commands import named_again
from ppl_gen.errors import warnings_of
from ppl_gen.runs import Run

if TYPE_CHECKING:
    from ppl_gen.summaries import Row

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --rule: #c4c4c4; --soft: #f4f4f4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #161616; --rule: #555; --soft: #242424 } }
@media print { :root { --ink: #000; --paper: #fff; --rule: #999; --soft: #fff } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 70rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.25 }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.25rem }
.warning { padding: .5rem .8rem; border: 2px solid; border-left-width: .8rem; font-weight: 600 }
.scroll { overflow-x: auto }
table { margin-bottom: 1rem; border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal }
caption { padding: .3rem 0; text-align: left; font-weight: 600 }
caption span { display: inline-block; position: sticky; left: 0; max-width: calc(100vw - 2rem) }
th, td { padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top }
th { font-weight: 500 }
thead th { border-bottom: 2px solid; vertical-align: bottom }
.number { text-align: right; white-space: nowrap }
.term { padding-left: 1.2rem }
.note { min-width: 13rem }
.pictures { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start }
figure { flex: var(--aspect) 1 max(26rem, var(--aspect) * 17rem); margin: 0;
  max-width: min(100%, var(--width), max(38rem, var(--aspect) * 26rem)) }
img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--rule) }
figcaption { padding-top: .3rem; font-size: .9rem }
.options { columns: 20rem; column-gap: 2rem }
.options div { break-inside: avoid }
.options table { width: 100% }
.options th { white-space: nowrap }
.options td { width: 99%; overflow-wrap: anywhere }
pre { margin: 0; padding: .8rem; border: 1px solid var(--rule); background: var(--soft); font-size: .9rem;
  white-space: pre-wrap; overflow-x: auto }
pre span { white-space: nowrap }
.explorer { display: grid; grid-template-columns: minmax(0, 16rem) minmax(0, 24rem) minmax(15rem, 1fr); gap: 1.5rem;
  align-items: start; overflow-wrap: normal }
.explorer canvas { display: block; width: 100%; border: 1px solid var(--rule) }
.explorer .image { background: #fff; image-rendering: pixelated }
.explorer .status { min-height: 3lh; margin: .5rem 0; font-size: .9rem }
.plane { position: relative; cursor: crosshair; touch-action: none; user-select: none }
.plane canvas { aspect-ratio: 1 }
.handle { position: absolute; width: 1.5rem; height: 1.5rem; margin: 0 0 -.75rem -.75rem; border: 3px solid var(--ink);
  border-radius: 50%; outline: 2px solid var(--paper); cursor: grab }
.handle:focus-visible { outline: 3px solid Highlight; outline-offset: 2px }
.axes, .buttons { display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0; font-size: .9rem }
.buttons { margin-top: 0 }
.explorer button, .explorer select { padding: .3rem .5rem; border: 1px solid var(--rule); border-radius: .3rem;
  font: inherit; color: inherit; background: var(--soft); cursor: pointer }
.unit { display: grid; grid-template-columns: 3.2rem minmax(0, 1fr) 3.2rem; gap: .5rem; align-items: center;
  padding: .15rem 0; font-size: .9rem; font-variant-numeric: tabular-nums }
.unit[hidden] { display: none }
.unit input { width: 100%; margin: 0; accent-color: var(--ink) }
@media (max-width: 62rem) { .explorer { grid-template-columns: minmax(0, 16rem) minmax(0, 24rem) }
  .explorer > :last-child { grid-column: 1 / -1 } }
@media (max-width: 40rem) { .explorer { grid-template-columns: minmax(0, 1fr) }
  .seen { position: sticky; top: 0; z-index: 1; display: flex; gap: 1rem; padding: .5rem 0; background: var(--paper) }
  .explorer .image { flex: 0 0 8rem; width: 8rem; align-self: start } }
@media print { .explored { display: none } }
@media print { body { max-width: none; padding: 0 } .scroll { overflow: visible } h2 { break-after: avoid }
  figure, table { break-inside: avoid } }
"""

# Of the package's own pictures: a caption, and what is to be seen.
_PICTURES = {
    "learning_curves": ("Through training; dashed, if there, the validation split", "Curves over the epochs"),
    "bound_against_k": (
        "The IWAE bound against its number of samples k, with the ELBO at k = 1; dashed, log p(x)",
        "A line that rises",
    ),
    "gap_histogram": (
        "What the bound leaves out, image by image; hatched, if there, where log p(x) is not settled and the gap at "
        "least this",
        "A histogram over images of log p(x) - ELBO",
    ),
    "samples": (
        "Images from the model, of z from the prior",
        "Two grids of 25 images: on the left the means E[x | z], on the right images drawn given the same z",
    ),
    "through_training": (
        "Samples from the same noise (the same z, if p(z) is not learned) before, half-way through and after training",
        "Rows of ten images E[x | z], with the epoch beside each: before training, half-way, and at its end",
    ),
    "reconstructions": (
        "Images, and the means that the model gives for z from the guide",
        "Two rows of ten images: images of the test split above, their reconstructions below",
    ),
    "interpolations": (
        "On the way from one image's posterior mean to another's",
        "Rows of images that go over from one into another in equal steps of z",
    ),
    "manifold": (
        "The images of a plane of z; each of the two units goes in steps of equal prior mass",
        "A grid of images E[x | z], which change little from one to the next",
    ),
    "latent_space": (
        "Posterior means of images; ellipses are of one posterior standard deviation, around the first 60",
        "Scatter plots of posterior means over two latent units, for each split, each drawn as its label if it has one",
    ),
    "aggregate_posterior": (
        "z of the guide over test images, beside z of the prior",
        "Histograms of at most ten latent units, most active first: the guide's in grey, the prior's as an outline",
    ),
    "components": (
        "Components, the most probable first",
        "A grid of mean images, one for each of at most 60 components, with its probability above",
    ),
    "weights": (
        "What each unit adds to the pixels' log-odds",
        "A grid of images in grey levels, one for each of at most 60 latent units, with the probability that it is 1 "
        "above",
    ),
    "posterior": (
        "Posterior probabilities of the units",
        "Five images, each beside bars of the exact p(z = 1 | x) of every unit, with a mark for the prior's and, if it "
        "has one, for the guide's",
    ),
    "interpolation": ("From one z to another", "A row of images that go over into one another"),
    "components_by_label": (
        "Components and labels",
        "A table with a row for each component: its mean image, and the number of its images that have each label",
    ),
    "responsibilities": (
        "Which components explain which images",
        "Images, each beside the components most responsible for it and their probabilities",
    ),
    "sample_classes": (
        "The classes that a classifier sees in the samples, beside those of the test images",
        "Bars of the share of each class, in pairs: of the samples, and of the test images",
    ),
    "neighbours": (
        "Samples, and below each the training image that is nearest to it",
        "Two rows of ten images: samples above, their nearest training images below, with the distances",
    ),
    "spliced": (
        "Natural and spliced images, with log p(x) in nats",
        "A row of images as they are, and a row of images put together from halves of two, log p(x) below each",
    ),
    "splice_power": (
        "Telling spliced from natural batches",
        "Curves of power and false alarms against the number of images in a batch",
    ),
    "fill": (
        "Hidden pixels given the visible ones",
        "Rows of images: originals, their visible pixels, expected images, and completions drawn",
    ),
}
# Of a generator and a discriminator, in the place of a bound's.
_ADVERSARIAL = (
    "Through training: the two losses, the means of D(x) and D(G(z)), and the value function V, on training images",
    "Three panels of curves over the epochs: losses, means of the discriminator, and V",
)
_LINES = {
    "h1",
    "h2",
    "p",
    "tr",
    "li",
    "div",
    "figure",
    "meta",
    "title",
    "style",
    "head",
    "script",
    "section",
}  # that end a line of the source
_ANNEALING = ("num_temperatures", "num_chains", "leapfrog_steps", "schedule", "start", "acceptance")


# HTML ----------------------------------------------------------------------------------------------------------


class Html(str):
    """Text that is escaped already."""


def tag(name: str, /, *content: str, **attributes: str) -> Html:
    """An element. What is not `Html` is escaped. Of an attribute's name, underscores are hyphens, and the last is left
    out; one whose value is empty is not there."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(each)}"' for key, each in attributes.items() if each
    )
    inside = "".join(each if isinstance(each, Html) else escape(each) for each in content)
    end = "" if name in ("img", "meta") else f"</{name}>"
    return Html(f"<{name}{given}>{inside}{end}" + ("\n" if name in _LINES else ""))


def page(title: str, *content: str) -> str:
    """A whole document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    body = tag("body", tag("main", tag("h1", title), *content))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def saving(text: str) -> Callable[[Path], Any]:
    """What writes a page into a file. A path may hold what is no character."""
    return lambda path: path.write_bytes(text.encode("utf-8", "replace"))


def grid(caption: str, headings: Sequence[str], rows: Iterable[Html], numbers: Collection[str] = ()) -> Html:
    """A table in a box of its own that scrolls where it is too wide.

    :param headings: of the columns; none for names and values.
    :param numbers: headings of right-aligned columns.
    """
    head = [tag("th", each, scope="col", class_="number" if each in numbers else "") for each in headings]
    top = [tag("thead", tag("tr", *head))] if head else []
    table = tag("table", tag("caption", tag("span", caption)), *top, tag("tbody", *rows))
    return tag("div", table, class_="scroll", role="region", tabindex="0", aria_label=caption)


def figure(png: bytes, caption: str, alt: str) -> Html:
    """A picture, in the page."""
    width, height = struct.unpack(">II", png[16:24])
    picture = tag("img", src=f"data:image/png;base64,{b64encode(png).decode()}", alt=alt)
    size = f"--aspect: {width / height:.2f}; --width: {width}px"
    return tag("figure", picture, tag("figcaption", caption), style=size)


def _warning(text: str) -> Html:
    return tag("p", tag("strong", "Warning:"), f" {text}", class_="warning")


def _commands(lines: Iterable[tuple[str, Sequence[str]]]) -> Html:
    """Comments and commands, to be copied; lines are not broken within a word."""
    text = []
    for comment, words in lines:
        text += [escape(f"# {' '.join(comment.split())}")]
        text += [" ".join(tag("span", shlex.quote(word)) for word in words)] if words else []
    return tag("pre", tag("code", Html("\n".join(text))))


# A run ---------------------------------------------------------------------------------------------------------


def write_report(run: Run) -> None:
    """Write `report.html` from the other files of a run."""
    run.write_file("report.html", saving(report(run)))


def report(run: Run) -> str:
    """The page of a run: whatever of numbers and pictures its directory holds."""
    from ppl_gen import summaries

    config, metrics = run.config, run.metrics()
    names = ("evaluation.json", "gaps.json", "quality.json")
    summary, gaps, quality = (None if found and run.stale(found) else found for found in map(run.read_json, names))
    warnings = [config.get("data_notice", "")] + ([] if summary else ["not evaluated yet, as it is now"])
    content = []
    trained = f"{metrics[-1]['epoch']} epochs of training, {metrics[-1]['seconds']:.0f} s" if metrics else ""
    if summary:
        warnings += warnings_of(summary["observation"])
        lead = f"{summaries.images(summary)}; {summary['checkpoint']} weights; {trained}"
        content.append(tag("h2", "Bound against log p(x)"))
        content.append(_figures(summaries.UNITS, summaries.rows(summary), "how"))
    else:
        lead = f"{config['data_name']}, binarization {config['data']['binarization']}; {trained}"
    if gaps:
        warnings += warnings_of(gaps.get("observation", ""))
        content.append(tag("h2", "Where the gap comes from"))
        content.append(tag("p", f"{summaries.images(gaps)}; {gaps['checkpoint']} weights; {gaps['seconds']:.0f} s"))
        for title, rows in summaries.gap_rows(gaps):
            content.append(_figures(title or summaries.gap_units(gaps), rows, "Monte Carlo error"))
    if quality:
        content.append(tag("h2", "Samples, to a classifier"))
        content.append(tag("p", f"{summaries.quality_images(quality)}; {quality['checkpoint']} weights"))
        content.append(_figures(summaries.QUALITY_UNITS, summaries.quality_rows(quality), "", "value"))
    explored = run.read_json("explorer.json")
    if explored:
        content.append(_explorer(explored))
    pictures = _pictures(run, summary or {}, metrics)
    if pictures:
        content += [tag("h2", "Pictures"), tag("div", *pictures, class_="pictures")]
    content += [tag("h2", "Options"), tag("div", *_options(config), class_="options")]
    content += [tag("h2", "Make it again"), _commands(_again(run, summary, gaps, quality))]
    prominent = [_warning(text) for text in dict.fromkeys(warnings) if text]
    return page(f"{summaries.title(config)}, on {config['data_name']}", tag("p", lead), *prominent, *content)


def _figures(caption: str, rows: "Iterable[Row]", note: str, units: str = "nats") -> Html:
    """Rows of `summaries`, as a table."""
    lines = []
    for row in rows:
        indent = "term" if row.label.startswith(" ") else ""
        label = tag("th", row.label.strip(" :"), scope="row", class_=indent)
        cells = [tag("td", row.note, class_="note", colspan="3")]
        if row.mean:
            figures = (f"{'at least ' if row.at_least else ''}{row.mean}", f"± {row.se}" if row.se else "")
            cells = [*(tag("td", each, class_="number") for each in figures), tag("td", row.note, class_="note")]
        lines.append(tag("tr", label, *cells))
    return grid(caption, ("quantity", units, "± s.e.", note), lines, (units, "± s.e."))


def _explorer(explored: dict[str, Any]) -> Html:
    """`explorer.json` of a run, and the script that shows it."""
    rounding = explored["rounding"]
    cloud = "samples from the prior"
    if "means" in explored:
        cloud = "posterior means of test images" + (", each as its label" if explored["labels"] else "")
    others = "; the others have sliders" if len(explored["order"]) > 2 else ""
    text = (
        "The image is E[x | z]. Drag the point, or move it with the arrow keys, over the plane of two units of z"
        f"{others}. In the plane are {cloud}. The decoder's weights are rounded to 8 bits: over "
        f"{rounding['images']:,} images, that moves a pixel by at most {rounding['largest']:.2g}/255, and by "
        f"{rounding['mean']:.2g}/255 on average."
    )
    # An element's end within a string of the data would end the script.
    data = Html(json.dumps(explored, separators=(",", ":")).replace("<", "\\u003c"))
    return tag(
        "section",
        tag("h2", "Explore the latent space"),
        tag("p", text),
        tag("noscript", tag("p", "It needs JavaScript, which is off in this browser.")),
        tag("div", id="explorer", class_="explorer"),
        tag("script", data, type="application/json", id="explorer-data"),
        tag("script", Html(Path(__file__).with_name("explorer.js").read_text(encoding="utf-8"))),
        class_="explored",
    )


def _pictures(run: Run, summary: dict[str, Any], metrics: list[dict[str, Any]]) -> list[Html]:
    """The pictures of a run that there are, with what is to be seen in them."""
    files = {path.stem: path for path in sorted((run.path / "figures").glob("*.png")) if not path.name.startswith(".")}
    captions, seen = dict(_PICTURES), {}
    if metrics:
        last = metrics[-1]
        split = "validation" if "validation" in last else "train"
        if "elbo" in last[split]:
            before, after = (_fixed(line[split]["elbo"]) for line in (metrics[0], last))
            name = "ELBO" if "kl" in last[split] else "log p(x)"
            seen["learning_curves"] = f"; {split} {name} {before} before training, {after} at its end"
        else:
            captions["learning_curves"] = _ADVERSARIAL
    if "iwae" in summary:
        importance = summary.get("log_px_importance", summary["log_px"])
        elbo, log_px, gap = (_fixed(entry["mean"]) for entry in (summary["elbo"], importance, summary["gap"]))
        seen["bound_against_k"] = f" from {elbo} nats at k = 1 to {log_px} at k = {importance['num_samples']}"
        seen["gap_histogram"] = f"; its mean is {gap} nats"
    else:  # these are of another evaluation
        files = {name: path for name, path in files.items() if name not in ("bound_against_k", "gap_histogram")}
    found = []
    for name in sorted(files, key=[*_PICTURES, *files].index):
        words = name.replace("_", " ")
        caption, alt = captions.get(name, (words, f"A picture that the model has of its own: {words}"))
        found.append(figure(files[name].read_bytes(), caption, alt + seen.get(name, "")))
    return found


def _options(config: dict[str, Any]) -> list[Html]:
    """Every option of `config.json`, as it was resolved, in a table for each part."""
    parts: dict[str, dict[str, Any]] = {"run": {k: v for k, v in config.items() if not isinstance(v, dict)}}
    parts |= {name: value for name, value in config.items() if isinstance(value, dict) and value}
    tables = []
    for name, options in parts.items():
        rows = [tag("tr", tag("th", key, scope="row"), tag("td", _written(value))) for key, value in options.items()]
        tables.append(grid(name.replace("_", " "), (), rows))
    return tables


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return shlex.join(map(str, value))
    return "none" if value in (None, "") else str(value)


def _fixed(value: float | None) -> str:
    return "nan" if value is None else f"{value:.2f}"


# Commands ------------------------------------------------------------------------------------------------------


def fit_command(config: dict[str, Any]) -> list[str]:
    """The command line that made a run, with the data set that was found; empty for a run made from Python."""
    program, *arguments = config.get("command") or [""]
    if Path(program).name != "fit.py":
        return []
    data = str(config["data"]["data"])
    if f"--data {data}" not in " ".join(arguments).replace("=", " "):
        arguments += ["--data", data]
    return ["python", "-m", "ppl_gen.fit", *arguments]


def _again(
    run: Run, summary: dict[str, Any] | None, gaps: dict[str, Any] | None, quality: dict[str, Any] | None
) -> Iterator[tuple[str, Sequence[str]]]:
    named, made = named_again(run.config), fit_command(run.config)
    yield "the run, where there is none yet" if made else "the run was made from Python", made
    resume = ["python", "-m", "ppl_gen.fit", "--resume", str(run.path), *named]
    yield "go on with it if it was interrupted, and draw it again", resume
    for text, found in (("these numbers", summary), ("these gaps", gaps)):
        if found:
            yield text, ["python", "-m", "ppl_gen.evaluate", str(run.path), *named, *_evaluation(found)]
    if quality:
        options = {key.replace("_", "-"): quality[key] for key in ("num_images", "images", "checkpoint", "seed")}
        options["classifier-steps"] = quality["classifier"]["steps"]
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        yield "these scores of samples", ["python", "-m", "ppl_gen.quality", str(run.path), *named, *words]


def _evaluation(summary: dict[str, Any]) -> list[str]:
    """The options of `ppl_gen.evaluate` that an `evaluation.json` or a `gaps.json` was made with."""
    s = summary
    first = s.get("log_px", {})
    mixed = first if "proposal" in first else s.get("log_px_mixed", {})
    estimates = [s, first, *(s.get(f"log_px_{name}", {}) for name in ("importance", "mixed", "prior"))]
    options: dict[str, Any] = {
        "split": s["split"],
        "num-images": s["num_images"] if "num_images" in s else s["contexts"]["num_images"],
        "num-samples": next((each["num_samples"] for each in estimates if "num_samples" in each), None),
        "estimator": None if mixed and first["estimator"] == "exact" else first.get("estimator"),
        "checkpoint": s["checkpoint"],
        "seed": s["seed"],
    }
    annealed = s.get("annealed") or (first if first.get("estimator") == "annealed" else {})
    if annealed:
        options |= {f"annealed.{key.replace('_', '-')}": annealed[key] for key in _ANNEALING if key in annealed}
    if "contexts" in s:
        options |= {"estimator": "annealed"} if annealed else {}
        options["gap-copies"] = s["copies"]["num_images"] if "copies" in s else None
    elif annealed:
        options["sandwich"] = s["sandwich"]["num_images"] if "sandwich" in s else 0
    if mixed:
        options |= {"prior-share": mixed["proposal"]["prior_share"], "temperature": mixed["proposal"]["temperature"]}
    words = [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]
    if mixed:
        others, named = mixed["proposal"]["guides"][1:], mixed["proposal"].get("named", [])
        words += ["--proposals", *others] if others else []
        words += ["--proposal-guides", *named] if named else []
    return [*(["--gaps"] if "contexts" in s else []), *words]


# Several runs --------------------------------------------------------------------------------------------------


def comparison(
    compared: dict[str, Any],
    labels: Sequence[str],
    common: dict[str, str],
    columns: dict[str, list[str]],
    words: Collection[str],
    warnings: Collection[str],
    png: bytes,
    command: Sequence[str],
) -> str:
    """The page of a comparison.

    :param compared: what `ppl_gen.Comparison.to_json` returns.
    :param labels: of its rows.
    :param common: what all rows agree in, by heading.
    :param columns: the cells of what is left, by heading.
    :param words: headings of columns that are no numbers.
    :param warnings: those of the notes that must not be overlooked.
    :param png: its picture.
    :param command: what makes this page.
    """
    images, runs = compared["images"], [Run.open(Path(path)) for row in compared["rows"] for path in row["runs"]]
    numbers = set(columns) - set(words)
    kinds = ["number" if heading in numbers else "" for heading in columns]
    rows = []
    for first, *rest in zip(*columns.values(), strict=True):
        cells = [tag("td", cell, class_=kind) for cell, kind in zip(rest, kinds[1:], strict=True)]
        rows.append(tag("tr", tag("th", first, scope="row"), *cells))
    seen = []
    for label, row in zip(labels, compared["rows"], strict=True):
        difference = row["log_px_difference"]
        low, high = (_fixed(difference[end]) for end in ("low", "high"))
        interval = "" if difference["low"] is None else f", difference to the first row from {low} to {high}"
        seen.append(f"{label}, from {_fixed(row['elbo']['mean'])} to {_fixed(row['log_px']['mean'])}{interval}")
    caption = "A line for each row, from its ELBO to its log p(x)"
    if len(compared["rows"]) > 1:
        caption += "; below it the 95 % interval of its difference to the first row, whose log p(x) is dashed"
    alt = f"A line for each row: {'; '.join(seen)}"
    notes = [tag("li", note) for note in compared["notes"] if note not in warnings]
    notices = dict.fromkeys(run.config.get("data_notice", "") for run in runs)
    again = [("this page", command)]
    for run in runs:
        made = fit_command(run.config)
        again.append((f"{run.path}{'' if made else ', made from Python'}", made))
    of = f"{images['num_images']} {images['split']} images, binarization {images['binarization']}"
    agreed = ", ".join(f"{heading} {cell}" for heading, cell in common.items())
    return page(
        f"{len(runs)} run{'s' if len(runs) > 1 else ''} compared on {images['data']}",
        tag("p", f"{of}; nats per image, larger is better{f'; all rows: {agreed}' if agreed else ''}"),
        *(_warning(text) for text in (*notices, *warnings) if text),
        grid("Runs that differ in the seed alone are one row; best log p(x) first", list(columns), rows, numbers),
        tag("ul", *notes),
        tag("h2", "Picture"),
        tag("div", figure(png, caption, alt), class_="pictures"),
        tag("h2", "Make it again"),
        _commands(again),
    )
