"""Renders a self-contained page: a template of some package, in the style that all our pages share.

Not responsible for what a page says.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

STYLE = "report_style.css"


def render_page(package: str, template: str, **values: Any) -> str:
    """The page as text. `template` is a file of `package`; a name that it uses and `values` lack is an error."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    source = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    style = resources.files("controller").joinpath(STYLE).read_text(encoding="utf-8")
    return environment.from_string(source).render(style=style, **values)
