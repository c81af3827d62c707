"""What happens when somebody, or a queue, wants a run to end: Ctrl-C, SIGTERM, SIGHUP."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from zaq.errors import STOPPED

__all__ = ["ctrl_c_of_all", "ctrl_c_waits", "stop_together", "stopped_by_signals"]

ANSWER = "zaq: stopping, keeping what is finished; again to quit"
_asked: list[list[int]] = []  # of `ctrl_c_of_all`
STOPPING = [s for name in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, name, None)) is not None]


@contextmanager
def ctrl_c_waits(say: Callable[[str], object]) -> Iterator[list[int]]:
    """Inside, the first Ctrl-C (or SIGTERM, SIGHUP) is only noted, in the list that is yielded; a second breaks off.

    In a thread other than the main one signals are left as they are.
    """
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        say("what is computed is being saved, and zaq ends then; once more to break that off")

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {s: signal.getsignal(s) for s in STOPPING if signal.getsignal(s) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ctrl_c_of_all() -> Iterator[None]:
    """Inside, Ctrl-C waits for `stop_together`, where several processes do a run: one that left the others in the
    middle of a step would have them wait for ever.
    """
    from zaq.compute.processes import world  # the command line imports this module, and waits for no torch

    if world() == 1:
        yield
        return
    with ctrl_c_waits(lambda _: print(ANSWER, file=sys.stderr, flush=True)) as came:
        _asked.append(came)
        try:
            yield
        finally:
            _asked.pop()


def stop_together() -> None:
    """Between two steps: raise KeyboardInterrupt in all processes where the first one was asked to stop."""
    from zaq.compute.processes import sent, world

    if world() > 1 and _asked and sent(bool(_asked[-1])):
        _asked[-1].clear()
        raise KeyboardInterrupt


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside, Ctrl-C is answered at once and raises KeyboardInterrupt; a second one ends the process. So do SIGTERM and
    SIGHUP, unless they are ignored (nohup).
    """
    came: list[int] = []

    def stop(number: int, _: Any) -> None:
        if came:
            raise SystemExit(STOPPED)
        came.append(number)
        print(ANSWER, file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    asked = [s for s in STOPPING if signal.getsignal(s) in (signal.SIG_DFL, signal.default_int_handler)]
    before = {s: signal.getsignal(s) for s in asked if threading.current_thread() is threading.main_thread()}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
