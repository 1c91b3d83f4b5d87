"""Posterior probabilities of binary units."""

from typing import Any

from ppl_gen.core.contracts import Amortized, HasDensity, offers
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.figures.parts import unit_marginals
from ppl_gen.inference.exact import state_posterior
from ppl_gen.report.pictures import Drawn, as_images

ABOUT = "the posterior of the units"


def draw(fitted: Fitted) -> Drawn:
    """Exact p(z_m = 1 | x) of five test images, and the guide's. The model has one latent site of up to 16 binary
    units, and the methods `prior()` and `likelihood(z)`."""
    model: Any = fitted.model
    guide: Any = fitted.guide
    data, pair, x = fitted.data, fitted.pair, fitted.data.targets("test")[:5]
    shapes = list(pair.event_shapes.values())
    binary = len(shapes) == 1 and len(shapes[0]) == 1 and offers(model, HasDensity)
    if not binary or pair.num_states is None or pair.num_states > 2**16:
        return
    states, probabilities = state_posterior(model, x)
    exact = (probabilities.T @ states).cpu().numpy()
    of_guide = guide.posterior(guide.encode(x)).mean.cpu().numpy() if offers(guide, Amortized) else None
    prior = model.prior().mean.cpu().numpy()
    yield "posterior", unit_marginals(as_images(x, data), exact, of_guide, prior)
