"""A batch norm that divides by what is no number is refused by name, before anything is learned."""

import pytest
import torch
from conftest import zaq_here
from zoo import build, images

from zaq.errors import SourceError
from zaq.ir.capture import quiet, trace
from zaq.passes.fold import fold


@pytest.mark.parametrize(("variance", "eps"), [(-0.1, 1e-5), (0.0, 0.0), (-1e-5, 1e-5)])
@pytest.mark.parametrize("name", ["residual", "signed"])  # whose batch norm folds, and stays
def test_variances(variance: float, eps: float, name: str) -> None:
    model = build(name)
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.eps, norm.running_var[1] = eps, variance  # type: ignore[index]
    with pytest.raises(SourceError, match=rf"running_var: the variance of channel 1 is .*{eps:g}.*1 of .* channels"):
        fold(trace(model, images(2)))


def test_an_unused_channel_is_none_of_those() -> None:
    model = build("residual")
    next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_var[1] = 0.0  # type: ignore[index]
    fold(trace(model, images(2)))


def test_it_is_not_blamed_on_a_learning_rate(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = build("residual")
    next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_var[0] = -1.0  # type: ignore[index]
    with quiet():
        batch = ({0: torch.export.Dim.AUTO},)
        torch.export.save(torch.export.export(model, (images(2),), dynamic_shapes=batch), tmp_path / "net.pt2")
    done = zaq_here("quantize", tmp_path / "net.pt2", "-o", tmp_path / "out")
    assert done.exit_code == 2 and "variance of channel 0 is -1" in done.stderr and "lr_" not in done.stderr
