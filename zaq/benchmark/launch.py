"""Run a command and say on stdout, as JSON, how it ended: return code, seconds, peak resident memory.

A program of its own, run by its path and importing nothing of zaq, for three reasons. A child inherits its parent's
peak memory across exec (Linux), so whoever measures one has to be small. When the process that started this one ends
in whatever way, kill -9 included, its end of our stdin closes: then the command is killed too. And signals that a
queue sends to all of a job's processes are for the one that started us, which ends us both if it wants to.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

MAXRSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10
NOT_OURS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


def main() -> None:
    start = time.monotonic()
    for number in (getattr(signal, name) for name in NOT_OURS if hasattr(signal, name)):
        signal.signal(number, signal.SIG_IGN)  # which the command inherits
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    threading.Thread(target=_kill_at_end_of_input, args=(child,), daemon=True).start()
    _, status, usage = os.wait4(child.pid, 0)
    code = child.returncode = os.waitstatus_to_exitcode(status)
    found = {"code": code, "seconds": time.monotonic() - start, "peak_mb": usage.ru_maxrss / MAXRSS_PER_MB}
    print(json.dumps(found), flush=True)
    os._exit(0)  # the thread still waits in a read, which an orderly end would wait for


def _kill_at_end_of_input(child: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 1):
        pass
    child.kill()


if __name__ == "__main__":
    main()
