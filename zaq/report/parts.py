"""What every page of zaq is made with: one look, one script, and parts to build it from (`templates/`)."""

from pathlib import Path

import jinja2
from markupsafe import Markup

__all__ = ["environment"]

TEMPLATES = Path(__file__).with_name("templates")


def environment(*folders: Path) -> jinja2.Environment:
    """An environment that escapes what it is given, and refuses a name that it was not given.

    A page extends `base.html.j2`, and imports `parts.html.j2`. `folders`: where templates of its own lie.
    """
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]), autoescape=True, undefined=jinja2.StrictUndefined
    )
    found.globals["style"] = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    found.globals["script"] = Markup((TEMPLATES / "page.js").read_text(encoding="utf-8"))
    return found
