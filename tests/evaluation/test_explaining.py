"""How components agree with labels, against numbers worked out by hand."""

import numpy as np
import pytest

from ppl_gen.evaluation import explaining


def test_purity_by_hand() -> None:
    """The example of Manning, Raghavan and Schütze (2008), figure 16.4: purity 12/17, mutual information 0.36."""
    table = np.array([[5, 1, 0], [1, 4, 1], [2, 0, 3]])
    components, labels = (np.repeat(axis.ravel(), table.ravel()) for axis in np.indices(table.shape))
    assert (explaining.contingency(components, labels, 3, 3) == table).all()
    assert explaining.purity(table) == pytest.approx(12 / 17)
    found = explaining.agreement(components, labels)
    assert found["purity"]["mean"] == pytest.approx(12 / 17)
    assert found["purity"]["most_frequent_label"] == pytest.approx(8 / 17)
    assert found["purity"]["most_frequent_label"] <= found["purity"]["chance"] < found["purity"]["mean"]
    assert found["normalized_mutual_information"]["mean"] == pytest.approx(0.36, abs=0.005)


def test_chance_of_one_image_a_component() -> None:
    found = explaining.agreement(np.arange(10), np.arange(10) % 2)
    assert found["purity"]["mean"] == found["purity"]["chance"] == 1.0
