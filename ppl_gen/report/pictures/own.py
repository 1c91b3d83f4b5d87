"""Pictures that a model draws of itself."""

from typing import Any

from ppl_gen.core.contracts import HasPictures, offers
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.figures.canvas import pictures
from ppl_gen.figures.parts import parts
from ppl_gen.report.pictures import Drawn

ABOUT = "the model's own: pictures() fails"


def draw(fitted: Fitted) -> Drawn:
    """The pictures that a model draws of itself, if any."""
    model: Any = fitted.model
    if offers(model, HasPictures):
        for name, (title, values, captions) in model.pictures().items():
            yield name, parts(pictures(values, fitted.data.shape), captions, title)
