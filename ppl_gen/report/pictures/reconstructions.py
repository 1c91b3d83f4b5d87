"""Reconstructions of test images."""

from pyro import poutine

from ppl_gen.experiment.fitted import Fitted
from ppl_gen.figures.images import reconstructions
from ppl_gen.report.pictures import Drawn, as_images

ABOUT = "reconstructions"


def draw(fitted: Fitted) -> Drawn:
    """Test images beside their reconstructions from the guide's z. There are none if the guide draws no z, or training
    has no ELBO."""
    pair, data = fitted.pair, fitted.data
    if pair.enumerated or "elbo" not in fitted.directory.last.get("train", {}):
        return
    x, *labels = fitted.images("test", 10)
    guide_trace = poutine.trace(pair.guide).get_trace(x, *labels)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(x, *labels)
    means = model_trace.nodes[pair.image]["fn"].mean
    yield "reconstructions", reconstructions(as_images(x, data), as_images(means, data), "test")
