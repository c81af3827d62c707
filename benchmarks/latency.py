"""Latency in onnxruntime: float, every form of ours, and onnxruntime's own static int8 of the same float network, in
one run.

    python benchmarks/latency.py RUN [RUN ...] [--seconds 20]      # RUN: what `zaq quantize -o RUN` wrote

prints a Markdown table a network: medians over float's median at batch 1 and 32 on 1 and 2 threads, times as fast, and
float's milliseconds. The files take turns (`zaq.export.latency`), so that the ratios hold on a machine that does other
things besides; the milliseconds do not. 2 threads need 2 idle cores.
"""

import argparse
import tempfile
from pathlib import Path

from zaq.cli.options import progress
from zaq.cost.latency import FLOAT, Latency, contenders, measure
from zaq.export.onnx import to_onnx
from zaq.run import Run


def markdown(rows: list[Latency]) -> str:
    """A row a file, a column a setting."""
    settings = list(dict.fromkeys((r.batch, r.threads) for r in rows))
    lines = [
        "| file | " + " | ".join(f"batch {b}, {t} thread{'s' * (t > 1)}" for b, t in settings) + " |",
        "|---" * (len(settings) + 1) + "|",
    ]
    for name in dict.fromkeys(r.name for r in rows):
        cells = [r for r in rows if r.name == name]
        lines.append(f"| {name} | " + " | ".join(map(cell, cells)) + " |")
    return "\n".join(lines)


def cell(row: Latency) -> str:
    return f"{row.median:.2f} ms" if row.name == FLOAT or row.speedup is None else f"{row.speedup:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each batch and number of threads")
    arguments = parser.parse_args()
    for path in arguments.runs:
        run = Run.open(path)
        with tempfile.TemporaryDirectory() as folder:
            files = contenders(
                to_onnx(run.program(), {}, form="float"), run / "model.onnx", run.samples(), Path(folder)
            )
            rows = measure(files, seconds=arguments.seconds, progress=progress(), image=run.card().input)
        print(f"**{path}**\n\n{markdown(rows)}\n", flush=True)


if __name__ == "__main__":
    main()
