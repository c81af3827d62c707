"""The file and the checkpoint against the integer referee, layer by layer."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch.fx import GraphModule
from zoo import SHAPE, images, quantized_net

from zaq.config.card import Card
from zaq.errors import SourceError
from zaq.export.program import program_of
from zaq.ir.capture import from_exported
from zaq.methods.rtn import RTN
from zaq.verify.layers import compare_layers, summary


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GraphModule]:
    quantized = quantized_net("residual", "w4a4", RTN(), card=Card(input=SHAPE))
    path = tmp_path_factory.mktemp("layers") / "model.onnx"
    quantized.export(path)
    return path, from_exported(program_of(quantized.module))


def test_every_layer_is_equal(exported: tuple[Path, GraphModule]) -> None:
    layers, _ = compare_layers(*exported, images(16))
    assert layers[0].bits == 8 and 4 in {x.bits for x in layers} and len(layers) > 6
    assert all(x.file.equal == 1 and x.checkpoint.equal > 0.99 for x in layers), [str(x) for x in layers]
    assert f"{len(layers)} of {len(layers)} quantized tensors equal" in summary(layers)[0]
    assert len(summary(layers, every=True)) == len(layers) + 2


def test_the_first_layer_that_parts_is_named(exported: tuple[Path, GraphModule], tmp_path: Path) -> None:
    path, checkpoint = exported
    model = onnx.load(path)
    makers = {o: n for n in model.graph.node for o in n.output}
    second = [n for n in model.graph.node if n.op_type == "Conv"][1]
    weight = next(t for t in model.graph.initializer if t.name == makers[second.input[1]].input[0])
    weight.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(weight), 1, axis=0), weight.name))
    onnx.save(model, tmp_path / "model.onnx")
    layers, _ = compare_layers(tmp_path / "model.onnx", checkpoint, images(8))
    first = next(i for i, x in enumerate(layers) if x.file.equal < 1)
    # the image, what the first convolution writes, how the second reads it, then this one
    assert first == 3 and layers[2].file.equal == 1
    assert layers[first].checkpoint.equal > 0.99
    assert f"part first at {layers[first].name}" in summary(layers)[0]


def test_a_file_of_another_model_is_a_sentence(exported: tuple[Path, GraphModule], tmp_path: Path) -> None:
    quantized_net("no_batch_norm", "w4a4", RTN(), card=Card(input=SHAPE)).export(tmp_path / "model.onnx")
    with pytest.raises(SourceError, match="not exported from this checkpoint"):
        compare_layers(tmp_path / "model.onnx", exported[1], images(2))
