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
        again("these numbers", content, "evaluate", arguments, _defaults(content)),
    )


def _defaults(content: Json) -> Json:
    """The default of each option of an evaluation. That of `sandwich` depends on the estimator; earlier versions
    recorded 100 with every estimator, and used it with annealing alone."""
    options = content.get("options", {})
    unused = "sandwich_importance" not in content and options.get("estimator") != "annealed"
    defaults = asdict(EvaluationOptions())
    return defaults | {"sandwich": options.get("sandwich") if unused else 100 if "sandwich" in content else 0}
