"""`zaq doctor`."""

import dataclasses

import click

from zaq.config.bounds import json_text

__all__ = ["doctor"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def doctor(as_json: bool) -> None:
    """What this machine computes with: versions, devices, instructions, and whether onnxruntime runs a quantized
    convolution in integers here, and how fast. To be sent with a report of a fault.
    """
    from zaq.verify.machine import facts, integer_kernels

    found, kernels = facts(), integer_kernels()
    if as_json:
        click.echo(json_text(found | {"integer kernels": dataclasses.asdict(kernels)}, indent=1))
        return
    packages = found.pop("packages")
    click.echo("packages: " + ", ".join(f"{name} {v or '(not installed)'}" for name, v in packages.items()))
    for name, value in found.items():
        told = ", ".join(map(str, value)) if isinstance(value, list) else "unknown" if value is None else value
        click.echo(f"{name}: {told}")
    yes = "in integers" if kernels.used else "NOT IN INTEGERS"
    click.echo(
        f"a quantized convolution runs {yes} ({kernels.kernel}): {kernels.integer_ms:.2f} ms, "
        f"{kernels.float_ms:.2f} ms in float, on one thread ({kernels.float_ms / kernels.integer_ms:.1f} times)"
    )
