"""Kill `zaq quantize` again and again, resume it each time, and compare the file with that of a run left alone.

    python benchmarks/kills.py --kills 20 --seed 0 -o /tmp/kills -- --bits w4a4 -s polish=60

What stands behind `--` are the arguments of `zaq quantize`. Moments are drawn evenly over the time that the run left
alone took, saving and verifying included. Each kill is SIGKILL; a process that ended before its moment is counted, and
the run begun anew, so that as many kills come as were asked for. Written as JSON lines to OUTPUT/kills.jsonl.
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click

ZAQ = (sys.executable, "-m", "zaq", "quantize")


def digest(run: Path) -> str:
    """SHA-256 of a run's model.onnx."""
    return hashlib.sha256((run / "model.onnx").read_bytes()).hexdigest()


def killed(command: list[str], after: float) -> bool:
    """Run a command and kill it after so many seconds; False if it ended well before. Raises if it ended badly."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        _, err = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}: {err}")
    return False


@click.command()
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--every", default="1s", show_default=True, help="--snapshot of the runs that are killed.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.argument("arguments", nargs=-1)
def main(kills: int, seed: int, every: str, output: Path, arguments: tuple[str, ...]) -> None:
    """Exit code 1 if a file differs."""
    output.mkdir(parents=True)
    draw, log = random.Random(seed), (output / "kills.jsonl").open("w", buffering=1)
    start = time.monotonic()
    if killed([*ZAQ, *arguments, "-o", str(output / "alone")], 1e9):
        raise AssertionError
    seconds, wanted = time.monotonic() - start, digest(output / "alone")
    print(json.dumps({"alone": wanted, "seconds": seconds}), file=log)
    run, done, finished, differ = output / "killed", 0, 0, 0
    while done < kills or (output / "killed.partial").exists():
        resume = (output / "killed.partial" / "snapshots").exists()
        # Begun anew where nothing had been saved; a kill can come before the first stage has ended.
        place = ["--resume", str(run)] if resume else [*arguments, "-o", str(run), "--snapshot", every, "--overwrite"]
        place += ["--snapshot", every] if resume else []
        moment = draw.uniform(0.05, 1.0) * seconds if done < kills else 1e9
        if killed([*ZAQ, *place], moment):
            done += 1
            print(json.dumps({"kill": done, "after": moment, "resumed": resume}), file=log)
        else:
            finished += 1
            same = digest(run) == wanted
            differ += not same
            print(json.dumps({"finished": finished, "same": same}), file=log)
            shutil.rmtree(run)
    click.echo(f"{done} kills, {finished} runs ended, {differ} with another file ({seconds:.0f} s if left alone)")
    raise SystemExit(bool(differ))


if __name__ == "__main__":
    main()
