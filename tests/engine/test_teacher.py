"""A float model that is not finite on held-out images is refused with their number, not agreed with."""

import pytest
import torch
from torch import Tensor, nn
from zoo import CARD, head, images

from zaq.api import quantize
from zaq.errors import SourceError, UserError
from zaq.methods.flagship import Flagship
from zaq.methods.rtn import RTN


class Explosive(nn.Module):
    """Finite on zeros, and on next to nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), head(8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(
            self.conv(x) * 1e-3 * torch.exp(x[:, :, 1:-1, 1:-1].abs().amax((1, 2, 3), keepdim=True) * 1e4)
        )
        return out


@pytest.mark.parametrize("method", [RTN(), Flagship(synthesis=1, refine=0, images=64, reconstruct=0, polish=0, game=0)])
def test_a_teacher_that_is_not_finite(method: RTN | Flagship) -> None:
    with pytest.raises((SourceError, UserError), match=r"NaN or infinite for \d+ of \d+ held-out") as caught:
        quantize(Explosive(), images(2), "w8a8", method, card=CARD, effort="fast")
    assert "learning rate" not in str(caught.value) and "lr_" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_seeds(seed: int) -> None:
    with pytest.raises(UserError, match="from 0 to 2"):
        quantize(Explosive(), images(2), seed=seed)
