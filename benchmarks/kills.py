"""Kill zaq again and again, go on each time, and compare the files with those of a call that was left alone.

    python benchmarks/kills.py --kills 20 --seed 0 -o /tmp/kills -- quantize --bits w4a4 -s polish=60
    python benchmarks/kills.py --kills 10 -o /tmp/more -- benchmark MODEL --methods zaq,rtn --data cifar10:DIR --keep

What stands behind `--` is a call of `zaq quantize` or `zaq benchmark`, without -o. Moments are drawn evenly over the
time that the call left alone took, saving and measuring included. Each kill is SIGKILL to the process and all that it
started; a call that ended before its moment is counted and begun anew, so that as many kills come as were asked for.
Written as JSON lines to OUTPUT/kills.jsonl. Exit code 1 if a file differs.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

ZAQ = (sys.executable, "-m", "zaq")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every model.onnx in a folder, by its path there."""
    files = sorted(folder.rglob("model.onnx"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def killed(command: list[str], after: float | None) -> bool:
    """Run a command and kill it after so many seconds, if any; False if it ended before. Raises if it ended badly."""
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        _, err = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}: {err}")
    return False


def going_on(verb: str, arguments: tuple[str, ...], folder: Path, every: str) -> list[str]:
    """The call that begins in a folder, or goes on there."""
    if verb == "benchmark":
        return [*ZAQ, verb, *arguments, "-o", str(folder)]  # the same call again
    if (folder.with_name(f"{folder.name}.partial") / "snapshots").exists():
        return [*ZAQ, verb, "--resume", str(folder), "--snapshot", every]
    # Begun anew where nothing had been saved: a kill can come before the first stage has ended.
    return [*ZAQ, verb, *arguments, "-o", str(folder), "--snapshot", every, "--overwrite"]


@click.command()
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--every", default="1s", show_default=True, help="--snapshot of the runs that are killed.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.argument("verb", type=click.Choice(["quantize", "benchmark"]))
@click.argument("arguments", nargs=-1)
def main(kills: int, seed: int, every: str, output: Path, verb: str, arguments: tuple[str, ...]) -> None:
    """Kill `zaq VERB ARGUMENTS`."""
    output.mkdir(parents=True)
    draw, log = random.Random(seed), (output / "kills.jsonl").open("w", buffering=1)
    start = time.monotonic()
    killed([*ZAQ, verb, *arguments, "-o", str(output / "alone")], None)
    seconds, wanted = time.monotonic() - start, digests(output / "alone")
    print(json.dumps({"alone": wanted, "seconds": seconds}), file=log)
    folder, done, ended, differ, begun = output / "killed", 0, 0, 0, False
    while done < kills or begun:
        moment = draw.uniform(0.05, 1.0) * seconds if done < kills else None
        if begun := killed(going_on(verb, arguments, folder, every), moment):
            done += 1
            print(json.dumps({"kill": done, "after": moment}), file=log)
            continue
        ended += 1
        same = digests(folder) == wanted
        differ += not same
        print(json.dumps({"ended": ended, "same": same}), file=log)
        shutil.rmtree(folder)
    click.echo(f"{done} kills, {ended} calls ended, {differ} with other files ({seconds:.0f} s if left alone)")
    raise SystemExit(bool(differ))


if __name__ == "__main__":
    main()
