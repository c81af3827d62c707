"""`zaq inspect`."""

from typing import Any

import click

from zaq.cli.kinds import SOURCE, Choice
from zaq.cli.options import layer_options, layers_of, load_source, source_options
from zaq.config.bits import PLACEMENTS
from zaq.config.bounds import json_text

__all__ = ["inspect_model"]


@click.command(name="inspect")
@click.argument("source", default="zoo:resnet20_cifar10", type=SOURCE)
@click.option("--bits", default="w4a4", show_default=True, help="As for zaq quantize.")
@layer_options
@click.option("--placement", type=Choice(list(PLACEMENTS)), default="integer", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@source_options
def inspect_model(
    source: str,
    bits: str,
    layer_bits: tuple[str, ...],
    exclude: tuple[str, ...],
    placement: str,
    as_json: bool,
    **flags: Any,
) -> None:
    """What is in SOURCE, and what would be quantized at which bits. Nothing is written."""
    from zaq.config.bits import QConfig
    from zaq.config.names import kind_of

    qconfig, _ = QConfig.parse(bits, placement=placement, layers=layers_of(layer_bits, exclude)), kind_of(source)

    from zaq.report.inspect import describe_model, facts

    model = load_source(source, flags)
    click.echo(json_text(facts(model, qconfig), indent=1) if as_json else describe_model(model, qconfig))
