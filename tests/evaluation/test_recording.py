"""The files that an evaluation writes."""

import json
import math
from pathlib import Path

import pytest


def test_the_evaluation_of_a_run(finished: Path) -> None:
    summary = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    assert summary["log_px"]["estimator"] == "importance" and summary["log_px"]["num_samples"] == 50
    assert list(summary["iwae"]) == ["1", "10"]
    assert summary["num_images"] == 300 and summary["binarization"] == "dynamic" and summary["split"] == "test"
    assert summary["elbo"]["mean"] == pytest.approx(summary["reconstruction"]["mean"] - summary["kl"]["mean"])
    assert summary["gap"]["mean"] == pytest.approx(summary["log_px"]["mean"] - summary["elbo"]["mean"])
    assert summary["elbo"]["mean"] < summary["iwae"]["10"]["mean"] < summary["log_px"]["mean"]
    assert summary["num_parameters"] == 64 * 16 + 16 + 16 * 40 + 40 + 20 * 16 + 16 + 16 * 64 + 64
    for key in ("ess", "khat", "active_units", "seconds", "seed"):
        assert key in summary


def test_evaluation_nc_in_xarray_and_arviz(finished: Path) -> None:
    import arviz
    import xarray

    summary = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    with xarray.open_dataset(finished / "evaluation.nc", group="evaluation", engine="h5netcdf") as dataset:
        assert dataset.sizes == {"image": 300, "k": 2}
        assert dataset.attrs["estimator"] == "importance" and dataset["label"].shape == (300,)
        assert set(dataset["untrusted"].values.tolist()) <= {0, 1}
        assert bool(dataset["untrusted"].any()) == summary["gap"]["at_least"]
        for name in ("elbo", "log_px", "kl", "reconstruction", "gap"):
            assert float(dataset[name].mean()) == pytest.approx(summary[name]["mean"])
            assert dataset[name].attrs["units"] == "nats"
            assert float(dataset[name].std(ddof=1)) / math.sqrt(300) == pytest.approx(summary[name]["se"])
        assert float(dataset["iwae"].sel(k=10).mean()) == pytest.approx(summary["iwae"]["10"]["mean"])
    tree = arviz.from_netcdf(finished / "evaluation.nc")
    assert "log_px" in tree["evaluation"]
