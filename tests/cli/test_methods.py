"""`zaq methods`: what there is, and what can be set of it."""

import json

import pytest
from conftest import zaq_here

from zaq.cli.options import method_of
from zaq.methods import METHODS
from zaq.methods.settings import settings_of


def test_all_are_listed_with_their_papers() -> None:
    done = zaq_here("methods")
    assert done.exit_code == 0 and all(f"\n{name} " in f"\n{done.output}" for name in METHODS)
    assert "Zero-shot Adversarial Quantization (Liu, Zhang, Wang; CVPR 2021)" in done.output
    assert json.loads(zaq_here("methods", "--json").output).keys() >= METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_that_is_listed_can_be_set(name: str) -> None:
    """To its own default, as text: so that the list and `-s` know the same names."""
    settings = settings_of(METHODS[name])
    assert len({s.name for s in settings}) == len(settings)
    for s in settings:
        text = ",".join(map(str, s.default)) if isinstance(s.default, tuple) else str(s.default)
        made = method_of(name, (f"{s.name}={text}",))
        found = made.stage_constants[s.name] if "." in s.name else getattr(made, s.name)
        assert found == s.default, s.name


def test_range_default_and_sense_are_told() -> None:
    done = zaq_here("methods", "zaq")
    said = " ".join(done.output.split())
    assert "-s alpha= 0.1 a number, 0 or more; weight of D_f (code: 1.0); 0 leaves the relation maps out" in said
    found = {s["name"]: s for s in json.loads(zaq_here("methods", "flagship", "--json").output)}
    assert found["reconstruct.drop"]["values"] == "a number from 0 to 1" and found["polish"]["about"].startswith(
        "steps"
    )
