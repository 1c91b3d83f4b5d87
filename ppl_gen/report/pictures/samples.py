"""Samples from the model."""

from pyro import poutine

from ppl_gen.experiment.fitted import Fitted
from ppl_gen.figures.images import samples
from ppl_gen.report.pictures import Drawn, as_images

ABOUT = "samples: model(n=25) fails"


def draw(fitted: Fitted) -> Drawn:
    """Images from the model."""
    pair = fitted.pair
    site = poutine.trace(pair.model).get_trace(n=25).nodes[pair.image]
    yield "samples", samples(as_images(site["fn"].mean, fitted.data), as_images(site["value"], fitted.data))
