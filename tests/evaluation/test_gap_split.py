"""The two gaps as a run records them, and as a person reads them."""

import torch
from estimates import ONE, low

from ppl_gen.evaluation.gap_split import gap_parts
from ppl_gen.evaluation.gap_table import gap_rows
from ppl_gen.inference.gaps import Gaps


def test_a_missed_mode_stands_below_the_gaps() -> None:
    some = ONE.bool()
    found = Gaps(
        low(-10.0, estimator="importance", doubted=some),
        elbo=-12 * ONE,
        best_elbo=-11 * ONE,
        elbo_mc_var=1e-4 * ONE,
        best_elbo_mc_var=1e-4 * ONE,
        settled=some,
        missed=torch.arange(20) < 5,
        blind=torch.arange(20) < 2,
    )
    part = gap_parts(found)
    assert part["fraction_missed"] == 0.25 and part["fraction_blind"] == 0.1 and part["at_least"]
    said = [row.label for _, rows in gap_rows({"contexts": part}) for row in rows]
    assert "25% of images have a mode that the search did not reach:" in said
    assert "blind to other modes than the encoder's: 10% of images" in said
    earlier = {key: value for key, value in part.items() if not key.startswith(("fraction_missed", "fraction_blind"))}
    assert len(gap_rows({"contexts": earlier})[0][1]) == len(said) - 3
