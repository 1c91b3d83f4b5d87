"""The bound against log p(x), from `evaluation.json`."""

from collections.abc import Sequence
from dataclasses import asdict

from ppl_gen.evaluation import table
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment.run_directory import Json
from ppl_gen.report.sections import Section, Table, again

FILE = "evaluation.json"


def section(content: Json, arguments: Sequence[object]) -> Section:
    """ELBO with its terms, every estimate of log p(x), and the gap."""
    return Section(
        "Bound against log p(x)",
        "",
        [Table(table.rows(content), table.UNITS, "nats", "how")],
        again("these numbers", content, "evaluate", arguments, asdict(EvaluationOptions())),
    )
