"""The runs of a sweep, before any has started."""

import doctest
from pathlib import Path

from ppl_gen import fit, sweep
from ppl_gen.training import sweeping


def test_examples() -> None:
    assert doctest.testmod(sweeping) == (0, 1)


def test_values_that_are_paths(elsewhere: Path) -> None:
    """The name of a run is that of a folder, without folders above it."""
    for values, names in ((("a/1.npy", "b/1.npy"), ["a-1", "b-1"]), (("/a.npy", "b.npy"), ["a", "b"])):
        options = sweep.SweepOptions("vae", Path("out"), vary=(("data", *values),))
        assert [run.path for run in sweep.plan(options, [])] == [Path(f"out/vae-data-{name}.npy-0") for name in names]


def test_a_plan(elsewhere: Path) -> None:
    """Each run's arguments, read by `fit`, are its configuration."""
    objectives = ("vimco:50", "elbo-analytic-kl")
    options = sweep.SweepOptions("vae", Path("out"), ("normal",), objectives, seeds=(3, 4))
    planned = sweep.plan(options, ["--latent-dim", "5"])
    assert [run.name for run in planned] == [
        f"vae-normal-{objective}-{seed}" for objective in ("vimco-50", "elbo-analytic-kl") for seed in (3, 4)
    ]
    for run in planned:
        config, where = fit.parse(run.arguments)
        assert config == run.config and where.out == run.path
    assert planned[0].config.training.num_particles == 50 and planned[0].config.training.objective == "vimco"


def test_a_plan_of_guides_with_options(elsewhere: Path) -> None:
    guides = ("flow,transform=iaf,num-transforms=2", "flow,transform=planar")
    planned = sweep.plan(sweep.SweepOptions("vae", Path("out"), guides, ("elbo",), ("flow",)), [])
    assert [run.name for run in planned] == ["vae-flow-iaf-2-flow-elbo-0", "vae-flow-planar-flow-elbo-0"]
    assert [run.config.guide_options["transform"] for run in planned] == ["iaf", "planar"]
    assert planned[0].config.guide_options["num_transforms"] == 2 and planned[0].config.prior == "flow"
    assert fit.parse(planned[0].arguments)[0] == planned[0].config


def test_a_plan_of_objectives_with_options(elsewhere: Path) -> None:
    Path("mine.py").write_text(BOUND, encoding="utf-8")
    objectives = ("miwae:8,groups=4", "miwae:8,groups=2", "mine.py:Mine:6,weight=0.5", "mine.py:Mine")
    planned = sweep.plan(sweep.SweepOptions("vae", Path("out"), objectives=objectives), [])
    assert [run.name for run in planned] == ["vae-miwae-8-4-0", "vae-miwae-8-2-0", "vae-mine-6-0.5-0", "vae-mine-0"]
    assert [(run.config.training.num_particles, run.config.objective_options) for run in planned] == [
        (8, {"groups": 4}),
        (8, {"groups": 2}),
        (6, {"weight": 0.5}),
        (3, {"weight": 1.0}),
    ]
    for run in planned:
        assert fit.parse(run.arguments)[0] == run.config
    varied = sweep.SweepOptions("vae", Path("out"), objectives=("miwae:8",), vary=(("objective.groups", "2", "4"),))
    assert [run.config.objective_options for run in sweep.plan(varied, [])] == [{"groups": 2}, {"groups": 4}]


def test_a_plan_of_options_that_are_on_or_off(elsewhere: Path) -> None:
    objectives = ("nvil,normalize=True", "nvil,normalize=False,decay=0.5")
    vary = (("init-output-bias", "True", "False"),)
    planned = sweep.plan(sweep.SweepOptions("vae", Path("out"), objectives=objectives, vary=vary), [])
    assert [run.name for run in planned] == [
        f"vae-nvil-{options}-init-output-bias-{on}-0"
        for options in ("normalize", "no-normalize-0.5")
        for on in ("true", "false")
    ]
    found = [(run.config.objective_options, run.config.model_options["init_output_bias"]) for run in planned]
    assert [options["normalize"] for options, _ in found] == [True, True, False, False]
    assert [on for _, on in found] == [True, False, True, False] and found[-1][0]["decay"] == 0.5
    for run in planned:
        assert fit.parse(run.arguments)[0] == run.config


BOUND = """
class Mine:
    def __init__(self, *, num_particles: int = 3, weight: float = 1.0):
        self.num_particles, self.weight = num_particles, weight

    def surrogate(self, terms):
        return self.weight * terms.log_weight.mean(0)
"""


def test_a_plan_of_any_option(elsewhere: Path) -> None:
    """Every combination of values, of options of training, of the model and of the guide; guide and objective are the
    model's own where none is named. 1e-3 and 0.001 have one name, here and in `Comparison.fit`."""
    vary = (("learning-rate", "1e-3", "3e-3"), ("latent-dim", "2", "5"), ("guide.input-dropout", "0.1"))
    planned = sweep.plan(sweep.SweepOptions("vae", Path("out"), vary=vary), [])
    assert [run.name for run in planned] == [
        f"vae-learning-rate-{rate}-latent-dim-{dim}-guide.input-dropout-0.1-0"
        for rate in ("0.001", "0.003")
        for dim in ("2", "5")
    ]
    found = [(run.config.training.learning_rate, run.config.model_options["latent_dim"]) for run in planned]
    assert found == [(1e-3, 2), (1e-3, 5), (3e-3, 2), (3e-3, 5)]
    assert all(run.config.guide_options["input_dropout"] == 0.1 for run in planned)
    assert [run.name for run in sweep.plan(sweep.SweepOptions("mixture", Path("out")), [])] == [
        "mixture-enumerated-elbo-0"
    ]
