"""The parts of pages: text stays text, and what a template was not given is an error."""

from pathlib import Path

import jinja2
import pytest
from markupsafe import Markup

from zaq.report.parts import environment

HOSTILE = "<script>alert(1)</script>"
PAGE = '{% extends "base.html.j2" %}{% import "parts.html.j2" as parts %}{% block title %}{{ name }}{% endblock %}'
PAGE += "{% block content %}{{ parts.tiles(tiles) }}{{ parts.table(heads, rows, sorted=heads[1]) }}{% endblock %}"


def test_a_page_of_parts_escapes_what_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "own.html.j2").write_text(PAGE)
    tiles = [{"name": HOSTILE, "value": HOSTILE, "note": HOSTILE, "wide": True}]
    cell = {"text": HOSTILE, "value": 3, "href": '"' + HOSTILE}
    rows = [{"cells": [HOSTILE, 1.5, Markup("<svg></svg>")], "kind": "best"}, [cell, None, HOSTILE]]
    page = environment(tmp_path).get_template("own.html.j2").render(
        name=HOSTILE, tiles=tiles, heads=[HOSTILE, "loss", ""], rows=rows
    )  # fmt: skip
    assert page.count("<script") == 1 and "default-src 'none'" in page
    assert '<tr class="best">' in page and 'data-value="3"' in page and '<td class="bar"><svg></svg>' in page
    assert '<td class="n">1.5</td>' in page and page.count('<th class="n" aria-sort="descending">loss') == 1


def test_what_is_not_given_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "own.html.j2").write_text("{{ nothing }}")
    with pytest.raises(jinja2.UndefinedError, match="nothing"):
        environment(tmp_path).get_template("own.html.j2").render()
