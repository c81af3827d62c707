"""Each layer alone: the one that is worst is told, and what is measured is one layer and nothing else."""

import pytest
import torch
from torch.nn import functional as F
from zoo import CARD, quantized_net

from zaq.config.bits import QConfig
from zaq.engine.journal import Journal
from zaq.methods.zeroq import ZeroQ
from zaq.quantized import Learned
from zaq.report.sensitivity import LEAST, MOST, sensitivity


@pytest.fixture(scope="module")
def made() -> Learned:
    qconfig = QConfig.parse("w8a8", layers={"head.2": "w2a8"})
    return quantized_net("residual", qconfig, ZeroQ(batch=8, steps=8), card=CARD)


def test_the_layer_at_two_bits_is_the_worst(made: Learned) -> None:
    found = made.report["sensitivity"]
    worst, *others = found["layers"]
    assert worst["module"] == "head.2" and worst["bits"] == 2 and len(others) == 4
    assert worst["loss"] > 20 * others[0]["loss"] > 0
    assert [row["loss"] for row in others] == sorted((row["loss"] for row in others), reverse=True)
    assert found["classes"] and LEAST <= found["images"] <= MOST


def test_it_is_the_divergence_of_a_network_in_which_nothing_else_is_rounded(made: Learned) -> None:
    """Against the same by hand: of the last layer, which reads one tensor alone, in the teacher."""
    state, found = made.state, made.report["sensitivity"]
    assert state.samples is not None
    images, student = state.samples[: found["images"]], state.student
    (layer,) = (name for name, (_, weight) in student.placement.layers.items() if weight == "head.2.weight")
    reads, weight = student.placement.layers[layer]
    (bias,) = student.placement.biases[weight]
    taken: list[torch.Tensor] = []
    nodes = {n.name: n for n in state.task.teacher.graph.nodes}

    class Taken(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            if n is nodes[layer]:
                taken.append(self.fetch_args_kwargs_from_env(n)[0][0])
            return super().run_node(n)

    clean = Taken(state.task.teacher).run(images)
    quantizer = student.placement.weights[weight]
    step = student.placement.activations[reads].scale * quantizer.scale
    rounded = (student.weight(bias) / step).round() * step
    q = F.linear(student.placement.activations[reads](taken[0]), quantizer(student.weight(weight)), rounded)
    p = clean[0] if isinstance(clean, tuple | list) else clean
    wanted = float((p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1).mean())
    (row,) = (row for row in found["layers"] if row["module"] == "head.2")
    assert row["loss"] == pytest.approx(wanted, rel=1e-3, abs=1e-9)


def test_nothing_of_the_student_changes_and_ctrl_c_is_not_kept_waiting(made: Learned) -> None:
    before = made.student.snapshot()
    assert sensitivity(made.state, Journal()) == made.report["sensitivity"]
    assert all(q.quantizing for q in (*made.student.placement.activations.values(), *made.student.quantizers()))
    assert all(torch.equal(value, before[name]) for name, value in made.student.snapshot().items())
    assert sensitivity(made.state, Journal(interrupted=True)) is None
