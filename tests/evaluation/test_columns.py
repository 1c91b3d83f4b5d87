"""How rows are told apart where a person reads them."""

from pathlib import Path
from typing import Any

from written import write

from ppl_gen.comparison import Comparison


def test_guides_of_a_session_have_their_own_names(elsewhere: Path) -> None:
    """Two of one name are told apart by where they came from, or by their code."""
    mine = write("a", [-9], [-2], guide="class:Laplace", guide_sha256="a" * 64)
    assert " Laplace " in str(Comparison([mine])) and "class:" not in str(Comparison([mine]))
    other = write("b", [-9], [-3], guide="class:Laplace", guide_sha256="b" * 64)
    instance = write("c", [-9], [-4], guide="instance:Laplace", guide_sha256="a" * 64)
    assert Comparison([mine, write("d", [-9], [-3])]).frame["guide"].tolist() == ["class:Laplace", "normal"]
    text = str(Comparison([mine, other]))
    assert "all rows: model vae, guide Laplace" in text and "guide_sha256=aaaaaaaa" in text and "class:" not in text
    assert "class:Laplace" in str(Comparison([mine, instance])) and "instance:Laplace" in str(
        Comparison([mine, instance])
    )


def test_one_image_has_no_error(elsewhere: Path) -> None:
    """The error over seeds stands in its own place."""
    options: dict[str, Any] = {"training.objective": "elbo"}
    paths = [write(f"seed-{seed}", [-9.0], [-2.0 - seed], **{"training.seed": seed}, **options) for seed in (0, 1)]
    assert "-2.50 ± – ± 0.50" in str(Comparison(paths))
    assert "-2.00 ± " not in str(Comparison(paths[:1]))
