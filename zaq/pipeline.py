"""What `zaq quantize` does around the method: the run directory, the file, its verification, the report."""

import dataclasses
from pathlib import Path
from typing import Any

from zaq.api import Quantized, quantize_graph
from zaq.config.bits import QConfig
from zaq.cost import deployment
from zaq.data import shuffled
from zaq.engine.journal import Log
from zaq.engine.progress import Progress
from zaq.export.onnx import in_form, translate
from zaq.export.program import program_of
from zaq.ir.capture import from_exported
from zaq.ir.nodes import attribute, open_sizes
from zaq.ir.sizes import WORDS
from zaq.report import facts as reporting
from zaq.report.page import render
from zaq.run import Run, disk_errors
from zaq.sources import Source
from zaq.verify.layers import SAMPLES, compare_layers, summary
from zaq.verify.parity import compare, compare_sizes

__all__ = ["quantize_run"]

FT_BATCH = 64


def quantize_run(
    model: Source,
    qconfig: QConfig,
    method: Any,
    effort: str,
    seed: int,
    folder: Path,
    overwrite: bool = False,
    progress: Progress | None = None,
    data: str | None = None,
) -> dict[str, Any]:
    """Quantize a loaded model into a run directory and return the report. See `zaq.run` for what lies there after.

    `data` is for a method that reads real images, which is `ft` alone; the report says so.
    The student is saved as soon as it is trained, so that nothing computed is lost if a later step fails.
    """
    progress = progress or Progress()
    run = Run.create(folder, overwrite)
    source = {"name": model.name, "sha256": model.sha256}
    log = Log(run / "log.jsonl")
    real = shuffled(data, model.card, FT_BATCH, seed) if data and method.reads_data else None
    with disk_errors(folder):  # the log grows with every step
        quantized = quantize_graph(
            model.graph, qconfig, method, card=model.card, effort=effort, seed=seed, progress=progress, log=log,
            source=source, real=real,
            notes=model.notes,
        )  # fmt: skip
    quantized.report["options"] |= {"data": data, "interface": model.interface.to_dict()}
    report = quantized.report
    run.write_json("options.json", report["options"])
    progress.say("saving and verifying")
    exported = program_of(quantized.module)
    run.write_checkpoint(exported)
    if quantized.state.samples is not None:
        run.write_samples(quantized.state.samples, quantized.card)
    metadata = reporting.onnx_metadata(report["options"]) | {"parts": run.hashes()}
    translated = translate(exported)
    run.write("model.onnx", in_form(translated, metadata, target=qconfig.runtime, interface=model.interface))
    if quantized.state.samples is not None:
        parity = compare(run / "model.onnx", quantized.module, run.samples())
        report["parity"], report["parity_sentence"] = parity.to_dict(), parity.sentence()
        free = open_sizes(quantized.teacher)
        sizes = compare_sizes(run / "model.onnx", quantized.module, run.samples(), free)
        report["other_sizes"] = {size: {**p.to_dict(), "sentence": p.sentence()} for size, p in sizes.items()}
        if free:
            words = " and ".join(WORDS[d] for d in free)
            stay = "stay" if len(free) > 1 else "stays"
            report["notes"].append(
                f"the {words} {stay} open in the file, which is checked at {' and '.join(sizes)} too"
            )
        layers, _ = compare_layers(run / "model.onnx", from_exported(exported), run.samples()[:SAMPLES])
        report["layers"], report["layers_summary"] = [dataclasses.asdict(x) for x in layers], summary(layers)
    report["sizes"] = _sizes(run, quantized)
    costs = deployment.costs(in_form(translated, {}, "float"), run / "model.onnx", quantized.card.input)
    report["deployment"] = deployment.report(costs)
    run.write_json("report.json", report)
    run.write("report.html", render(report, log.rows, quantized.state.samples, quantized.card))
    return report


def _sizes(run: Run, quantized: Quantized) -> dict[str, int]:
    """Bytes of the file, and of the same weights as float32."""
    weights = {str(n.target) for n in quantized.teacher.graph.nodes if n.op == "get_attr"}
    floats = sum(4 * attribute(quantized.teacher, name).numel() for name in weights)
    return {"model.onnx": (run / "model.onnx").stat().st_size, "float weights": floats}
