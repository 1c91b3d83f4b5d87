"""The bound against log p(x), from `evaluation.json`."""

from collections.abc import Sequence
from dataclasses import asdict

from ppl_gen.core.commands import command
from ppl_gen.core.tables import Row
from ppl_gen.evaluation import table
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment.run_directory import Json
from ppl_gen.report.sections import Section, Table, again

FILE = "evaluation.json"


def section(content: Json, arguments: Sequence[object]) -> Section:
    """ELBO with its terms, every estimate of log p(x), and the gap."""
    return Section(
        "How far is the bound from log p(x)?",
        f"Measured on {table.images(content)}, with the {content['checkpoint']} weights.",
        [Table(_rows(content), table.UNITS, "nats", "how")],
        again("these numbers", content, command("evaluate", *arguments), "evaluate", _defaults(content)),
    )


def _rows(content: Json) -> list[Row]:
    """The rows, without the command to try next, which the page has further up with the run's own path."""
    return [row for row in table.rows(content) if row.label != table.NEXT]


def _defaults(content: Json) -> Json:
    """The default of each option of an evaluation. That of `sandwich` depends on the estimator."""
    return asdict(EvaluationOptions()) | {"sandwich": 100 if "sandwich" in content else 0}
