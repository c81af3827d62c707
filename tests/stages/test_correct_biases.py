"""Bias correction as a stage: the held-out loss sees it, and a student that was pushed off comes back."""

from zoo import calibrated

from zaq.engine.journal import Journal
from zaq.engine.runner import run_stages
from zaq.ir.nodes import attribute
from zaq.stages.bias import CorrectBiases


def test_held_out_sees_what_it_does() -> None:
    """Graphs with taps share parameters with the student; a correction that puts others in their place would pass
    unseen.
    """
    state, journal = calibrated("residual", "w2a2"), Journal()
    for name in state.student.placement.weights:  # a shift that correction can take back
        attribute(state.student.module, name.replace("weight", "bias")).data += 0.5
    run_stages([CorrectBiases()], state, journal)
    record = journal.records[0]
    assert record.kept and (record.loss_after or 1) < 0.7 * (record.loss_before or 0)
