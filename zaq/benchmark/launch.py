"""Run a command and say on stdout, as JSON, how it ended: return code, seconds, peak resident memory.

A program of its own, run by its path and importing nothing of zaq, for two reasons. A child inherits its parent's
peak memory across exec (Linux), so whoever measures one has to be small. And when the process that started this
one ends in whatever way, kill -9 included, its end of our stdin closes: then the command is killed too.
"""

import json
import os
import subprocess
import sys
import threading
import time

MAXRSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10


def main() -> None:
    start = time.monotonic()
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
