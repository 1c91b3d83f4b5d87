"""Images that a run was not fitted to are read as its test images are."""

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from ppl_gen.core.errors import BadInput
from ppl_gen.run import Run

DIGITS = torch.from_numpy(load_digits().images[:20]).float()
"""Grey levels 0 … 16."""


@pytest.mark.parametrize("binarization", ["dynamic", "static", "threshold", "dequantized"])
def test_levels_and_shares_of_white_are_the_same_images(elsewhere: Path, binarization: str) -> None:
    options = {"binarization": binarization, "epochs": 1, "num_samples": 10, "latent_dim": 1, "quiet": True}
    model = "factor-analysis" if binarization == "dequantized" else "vae"
    run = Run.fit(model, data="digits", train_size=200, **options)  # type: ignore[arg-type]
    log_px = run.log_px(DIGITS).log_px
    assert torch.equal(run.log_px(DIGITS / 16).log_px, log_px)
    assert torch.equal(run.log_px(DIGITS.byte().numpy()).log_px, log_px)
    with pytest.raises(BadInput, match=r"^data: no images; give at least one$"):
        run.log_px(DIGITS[:0])
    for divisor in (15.999, 8.5):
        with pytest.raises(BadInput, match=r"are neither in \[0, 1\] nor grey levels up to 16"):
            run.log_px(DIGITS / divisor)
    if binarization == "dequantized":
        with pytest.raises(BadInput, match="these pixels lie between levels"):
            run.log_px(DIGITS / 16 * 0.99)


def test_dark_levels_are_levels(elsewhere: Path) -> None:
    """Levels 0 and 1 of 16, as whole numbers: the same images, whatever else is in the batch."""
    options = {"likelihood": "categorical", "epochs": 1, "num_samples": 10, "latent_dim": 1, "quiet": True}
    run = Run.fit("vae", data="digits", train_size=200, binarization="none", **options)  # type: ignore[arg-type]
    dark = (DIGITS > 8).byte()
    alone = run.log_px(dark).log_px
    assert torch.equal(run.log_px(dark.float() / 16).log_px, alone)
    torch.testing.assert_close(run.log_px(torch.cat([dark, DIGITS.byte()])).log_px[:20], alone, atol=1e-4, rtol=0)
    assert not torch.equal(run.log_px(dark.float()).log_px, alone)  # 1 is white
