"""The agent's text templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parent.parent / "templates"


def render(name: str, **values: Any) -> str:
    """Return the template `name` of the package, filled in; every value that it uses must be given.

    Jinja2 is imported here and nowhere else, so that an idle check-in never loads it.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # The templates make configuration files, not HTML; what goes in has been checked.
        autoescape=False,
    )
    return environment.get_template(name).render(**values)
