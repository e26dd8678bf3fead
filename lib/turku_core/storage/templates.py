"""The storage unit's text templates."""

from __future__ import annotations

from pathlib import Path

import jinja2

_FOLDER = Path(__file__).resolve().parent.parent / "templates"


def render(name: str, **values: str) -> str:
    """Return the template `name` of the package, filled in; every value it uses must be given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        # These are configuration files, not HTML; what goes in has been checked.
        autoescape=False,
    )
    return environment.get_template(name).render(**values)
