"""Approximation and amortization gaps, from `gaps.json`."""

from collections.abc import Sequence
from dataclasses import asdict

from ppl_gen.core.commands import command
from ppl_gen.evaluation import table
from ppl_gen.evaluation.gap_split import gap_rows, gap_units
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment.run_directory import Json
from ppl_gen.report.sections import Section, Table, again

FILE = "gaps.json"


def section(content: Json, arguments: Sequence[object]) -> Section:
    """The parts of the gap, on average and of some images."""
    defaults = asdict(EvaluationOptions()) | {"gaps": True, "sandwich": content["options"].get("sandwich")}
    how = f"with the {content['checkpoint']} weights, in {content['seconds']:.0f} s"
    return Section(
        "Where does the gap come from?",
        f"Measured on {table.images(content)}, {how}.",
        [Table(rows, title or gap_units(content), "nats", "Monte Carlo error") for title, rows in gap_rows(content)],
        again("these gaps", content, command("evaluate", *arguments, "--gaps"), "split_gap", defaults),
    )
