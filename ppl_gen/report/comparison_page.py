"""The page of several runs side by side. It needs no torch."""

from collections.abc import Collection, Sequence
from pathlib import Path

from ppl_gen.core.commands import fit_command
from ppl_gen.experiment.run_directory import Json, RunDirectory
from ppl_gen.report.page import Picture, render


def comparison(
    compared: Json,
    labels: Sequence[str],
    common: dict[str, str],
    columns: dict[str, list[str]],
    words: Collection[str],
    warnings: Collection[str],
    png: bytes,
    command: Sequence[str],
) -> str:
    """The page of a comparison.

    :param compared: the result of `ppl_gen.Comparison.to_json`.
    :param labels: labels of its rows.
    :param common: values that all rows share, by heading.
    :param columns: cells of the other columns, by heading.
    :param words: headings of columns of words.
    :param warnings: notes that stand above the table.
    :param png: the figure, as the content of a .png file.
    :param command: words of the command that makes this page.
    """
    from ppl_gen.figures.comparison import caption

    images, runs = (
        compared["images"],
        [RunDirectory.open(Path(path)) for row in compared["rows"] for path in row["runs"]],
    )
    agreed = ", ".join(f"{heading} {cell}" for heading, cell in common.items())
    lead = (
        f"{images['num_images']} {images['split']} images, binarization {images['binarization']}; "
        "nats per image, larger is better"
    )
    notices = [run.config.get("data_notice", "") for run in runs]
    again = [("this page", command)]
    for run in runs:
        made = fit_command(run.config)
        again.append((f"{run.path}{'' if made else ', made from Python'}", made))
    return render(
        "comparison.html.jinja",
        title=f"{len(runs)} run{'s' if len(runs) > 1 else ''} compared on {images['data']}",
        lead=lead + (f"; all rows: {agreed}" if agreed else ""),
        warnings=[text for text in dict.fromkeys([*notices, *warnings]) if text],
        headings=list(columns),
        numbers=set(columns) - set(words),
        rows=list(zip(*columns.values(), strict=True)),
        notes=[note for note in compared["notes"] if note not in warnings],
        picture=Picture.of(png, caption(compared, labels)),
        again=again,
    )
