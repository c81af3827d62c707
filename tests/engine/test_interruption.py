"""Ctrl-C is answered at once; again, and the process ends."""

import os
import signal

import pytest

from zaq.engine.interruption import stopped_by_signals
from zaq.errors import STOPPED


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_is_answered_and_the_second_ends_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end, stopped_by_signals():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert capsys.readouterr().err == "zaq: stopping, keeping what is finished; again to quit\n"
        os.kill(os.getpid(), number)
    assert end.value.code == STOPPED == 130 and signal.getsignal(number) is before
