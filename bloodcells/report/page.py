"""Pages: one HTML file each that needs nothing else, made from a template in this folder.

A template extends ``page.html``. Pages hold no script, and a content security policy that lets
nothing run or load: styles by their digest, images from the file itself. What a template prints is
escaped; what came from data (names, labels, messages) goes through the filter ``text`` as well.
Knows nothing of what a page shows.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2

from bloodcells.cells import CLASSES, SHORT_NAMES
from bloodcells.report import charts, formats

_HERE: Final = Path(__file__).parent


def render_page(template_name: str, **values: Any) -> str:
    """Return a page as HTML; the same values always give the same page.

    Templates also see ``charts`` (this package's module), ``classes`` and ``short_names``.

    Args:
        template_name: a file beside this one that extends ``page.html``: ``run.html``.
        values: what the template shows, by name. A name that it needs and that is not there is an
            error.
    """
    return _environment().get_template(template_name).render(**values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        text=formats.plain_text,
        number=formats.number,
        share=formats.share,
        duration=formats.duration,
        moment=formats.moment,
    )
    css = (_HERE / "page.css").read_text("utf-8")
    environment.globals.update(
        css=css,
        style_digest=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        charts=charts,
        classes=CLASSES,
        short_names=SHORT_NAMES,
        flatten=formats.flatten,
    )
    return environment
