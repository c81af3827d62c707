"""mIoU worked out by hand, and what is no segmentation."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from zaq.config.card import Card
from zaq.errors import DataError
from zaq.evaluate import TASKS
from zaq.evaluate.segmentation import Overlap

CARD = Card(input=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, classes=3)


class Colours(nn.Module):
    """A pixel is of the class of its brightest channel; every other pixel is looked at."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": x[:, :, ::2, ::2]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Left half red, right half blue; labelled 0 and 2 but for two columns that are 1, and one that counts nowhere."""
    pixels, mask = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    pixels[:, :4, 0] = pixels[:, 4:, 2] = 255
    mask[:, 4:], mask[:, :2], mask[:, 7] = 2, 1, 255
    for name, values in (("images", pixels), ("masks", mask)):
        (tmp_path / name).mkdir()
        Image.fromarray(values).save(tmp_path / name / "a.png")
    return tmp_path


def test_miou_by_hand(folder: Path) -> None:
    """Class 0 is found in 4 columns of which 2 are its own, class 1 never, class 2 always."""
    found = TASKS["segmentation"](Colours(), f"masks:{folder}", CARD)
    assert found == Overlap(pytest.approx(100 * (2 / 4 + 0 + 1) / 3), pytest.approx(100 * 5 / 7), 1)
    assert list(found.fields()) == ["miou", "pixel_accuracy", "total"] and "mIoU 50.00 %" in str(found)


def test_classes_that_never_occur_do_not_count() -> None:
    assert Overlap.of(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), 1).miou == pytest.approx(100 * (3 / 4 + 4 / 5) / 2)


def test_what_is_no_segmentation(folder: Path) -> None:
    with pytest.raises(DataError, match=r"needs one output \(N, classes, H, W\)"):
        TASKS["segmentation"](nn.Flatten(), f"masks:{folder}", CARD)
    Image.fromarray(np.full((8, 8), 3, np.uint8)).save(folder / "masks" / "a.png")
    with pytest.raises(DataError, match=r"holds class 3; the model knows 0\.\.2, and 255 counts nowhere"):
        TASKS["segmentation"](Colours(), f"masks:{folder}", CARD)
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / "masks" / "a.png")
    with pytest.raises(DataError, match="nothing but 255"):
        TASKS["segmentation"](Colours(), f"masks:{folder}", CARD)
    with pytest.raises(DataError, match="no images within a limit of 0"):
        TASKS["segmentation"](Colours(), f"masks:{folder}", CARD, 0)
