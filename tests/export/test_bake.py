"""A file that takes bytes says what the same file says of prepared images."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import ModelProto
from zoo import CARD, quantized_net

from zaq.errors import RunError, SourceError, UserError
from zaq.export.bake import bake, require_bakeable, require_same
from zaq.export.forms import optimized
from zaq.export.onnx import in_form, translate
from zaq.export.program import program_of
from zaq.export.session import run_session, session
from zaq.methods.rtn import RTN
from zaq.sources.frame import frame_of
from zaq.sources.interface import End, Interface

PIXELS = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PLAIN = Interface()


@pytest.fixture(scope="module")
def translated() -> ModelProto:
    return translate(program_of(quantized_net("residual", "w8a8", RTN(), card=CARD).module))


def written(path: Path, translated: ModelProto, layout: str, interface: Interface = PLAIN, bgr: bool = False) -> Path:
    card = replace(CARD, order="bgr") if bgr else CARD
    frame, inner = bake(translated, None, interface, card, layout)
    path.write_bytes(in_form(translated, {}, interface=inner, frame=frame))
    return path


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_bytes_give_the_same_numbers(layout: str, translated: ModelProto, tmp_path: Path) -> None:
    """To the last bit, and by the same integer kernels."""
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(in_form(translated, {}))
    baked = written(tmp_path / "baked.onnx", translated, layout)
    run = session(baked, whole=True)
    (image,) = run.get_inputs()
    assert image.type == "tensor(uint8)" and image.shape[1:] == ([16, 16, 3] if layout == "nhwc" else [3, 16, 16])
    given = PIXELS.permute(0, 2, 3, 1) if layout == "nhwc" else PIXELS
    wanted = run_session(session(plain), CARD.normalised(PIXELS))[0]
    assert (run.run(None, {image.name: given.contiguous().numpy()})[0] == wanted).all() and len(wanted) == 5
    assert (run_session(session(baked), CARD.normalised(PIXELS))[0] == wanted).all()  # what zaq eval asks: the inside
    require_same(baked, plain, PIXELS, CARD, layout)
    kernels = [[n.op_type for n in onnx.load_from_string(optimized(onnx.load(p))).graph.node] for p in (plain, baked)]
    assert kernels[0].count("QLinearConv") == kernels[1].count("QLinearConv") > 3
    assert {"Conv", "MatMul", "Gemm"}.isdisjoint(kernels[1])


def test_colours_are_turned_for_a_network_that_reads_blue_first(translated: ModelProto, tmp_path: Path) -> None:
    baked = written(tmp_path / "baked.onnx", translated, "nchw", bgr=True)
    found = session(baked, whole=True).run(None, {"input": PIXELS.numpy()})[0]
    assert (found == run_session(session(baked), CARD.normalised(PIXELS.flip(1)))[0]).all()
    require_same(baked, baked, PIXELS, replace(CARD, order="bgr"), "nchw")
    with pytest.raises(RunError, match="output 0 is not what the network says"):
        require_same(baked, baked, PIXELS, CARD, "nchw")


def test_names_and_types_of_the_source_stay(translated: ModelProto, tmp_path: Path) -> None:
    ends = Interface(inputs=(End("pixel_values"),), outputs=(End("logits", "FLOAT16"),))
    run = session(written(tmp_path / "baked.onnx", translated, "nhwc", ends), whole=True)
    assert [i.name for i in run.get_inputs()] == ["pixel_values"]
    assert [(o.name, o.type) for o in run.get_outputs()] == [("logits", "tensor(float16)")]
    assert run.run(None, {"pixel_values": PIXELS.permute(0, 2, 3, 1).contiguous().numpy()})[0].shape == (5, 5)


def test_what_stood_before_the_network_gives_way(translated: ModelProto, tmp_path: Path) -> None:
    """A source that took halves (N, H, W, C) has a Transpose and a Cast there; bytes need none of it."""
    old = frame_of(End("images", "FLOAT16", ("n", 16, 16, 3)), [End("output")], nhwc=True)
    frame, interface = bake(translated, old, PLAIN, CARD, "nchw")
    (tmp_path / "baked.onnx").write_bytes(in_form(translated, {}, interface=interface, frame=frame))
    run = session(tmp_path / "baked.onnx", whole=True)
    assert [(i.name, i.shape[1:]) for i in run.get_inputs()] == [("images", [3, 16, 16])]
    require_same(tmp_path / "baked.onnx", tmp_path / "baked.onnx", PIXELS, CARD, "nchw")


def test_what_reads_the_image_again_is_refused(translated: ModelProto) -> None:
    old = onnx.load_from_string(frame_of(End("images", "FLOAT", ("n", 16, 16, 3)), [End("output")], nhwc=True) or b"")
    old.graph.node.append(onnx.helper.make_node("Shape", ["images"], ["sizes"]))
    with pytest.raises(SourceError, match="reads the image itself"):
        bake(translated, old.SerializeToString(), PLAIN, CARD, "nchw")


def test_what_cannot_be_baked() -> None:
    with pytest.raises(UserError, match="Did you mean 'nhwc'"):
        require_bakeable(CARD, "nhcw")
    with pytest.raises(UserError, match="normalisation is unknown"):
        require_bakeable(replace(CARD, mean=None, std=None), "nhwc")
    with pytest.raises(UserError, match="no image in colour or grey"):
        require_bakeable(replace(CARD, input=(2, 16, 16), mean=(0.5,) * 2, std=(0.5,) * 2), "nhwc")
