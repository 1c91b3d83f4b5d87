"""Options of training."""

import pytest

from ppl_gen.experiment.options import TrainingOptions


def test_schedules() -> None:
    rates = {
        name: [TrainingOptions(learning_rate=2.0, schedule=name).rate(step, 100) for step in range(100)]  # type: ignore[arg-type]
        for name in ("constant", "cosine", "one-cycle")
    }
    assert set(rates["constant"]) == {2.0}
    assert rates["cosine"][0] == 2 and rates["cosine"][50] == pytest.approx(1) and rates["cosine"][-1] < 0.001
    cycle = rates["one-cycle"]
    assert cycle[0] == pytest.approx(0.08) and cycle[30] == 2 and cycle[-1] < 0.01
    assert cycle[:31] == sorted(cycle[:31]) and cycle[30:] == sorted(cycle[30:], reverse=True)
