"""The report of a run: one HTML file that needs nothing else, for a person who decides.

It holds no script, and a content security policy that lets nothing run or load: styles by their
digest, images from the file itself. All that came from data (names, labels, messages) is escaped.
The same run folder and store give the same report.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jinja2

from bloodcells import storage
from bloodcells.cells import CLASSES, SHORT_NAMES, WHITE_CELLS
from bloodcells.report import charts
from bloodcells.report.data import SLIDES_SHOWN, Facts, gather
from bloodcells.report.thumbnails import thumbnails

LONGEST_TEXT: Final = 160
"""Names and messages are shown up to this many characters, their middle left out."""

__all__ = ["Facts", "gather", "write_report"]


def write_report(run_uri: str, facts: Facts | None = None) -> str:
    """Write ``report.html`` into a run folder, whatever the run's state, and return its URI.

    Args:
        run_uri: the run folder.
        facts: what ``gather`` found there, where the caller has it already.

    Raises:
        RunError: there is no run folder at ``run_uri``, or a file of it is damaged.
        StorageError: the folder cannot be read or written.
    """
    run_uri = storage.normalise(run_uri)
    facts = facts or gather(run_uri)
    uri = storage.join(run_uri, "report.html")
    storage.put(uri, render(facts, thumbnails(run_uri, facts.least_certain)).encode())
    return uri


def render(facts: Facts, pictures: Mapping[str, str]) -> str:
    """Return the report as HTML.

    Args:
        facts: what to show.
        pictures: ``data:`` URI by image URI; cells without one show a placeholder.
    """
    return render_page(
        "report.html",
        ("report.css",),
        facts=facts,
        run=facts.run,
        pictures=pictures,
        charts=charts,
        classes=CLASSES,
        short_names=SHORT_NAMES,
        white_cells=WHITE_CELLS,
        beside_white=[name for name in CLASSES if name not in WHITE_CELLS],
        slides_shown=SLIDES_SHOWN,
        flatten=flatten,
    )


def render_page(template: str, styles: Sequence[str], **values: Any) -> str:
    """Render a page of its own: all that is put into it is escaped, nothing runs or loads.

    Args:
        template: name of a file beside this one; it gets ``css`` and ``style_digest``.
        styles: names of style sheets beside this one, in order.
        values: what the template shows.
    """
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        text=plain_text, number=number, share=share, duration=duration, moment=moment
    )
    css = "".join((here / name).read_text("utf-8") for name in styles)
    style_digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return environment.get_template(template).render(css=css, style_digest=style_digest, **values)


def plain_text(value: object) -> str:
    """Make any value safe and short to look at.

    What does not print (terminal escapes, line breaks, marks that turn the direction of writing)
    is shown as its escape, so that no name can pass for another.
    """
    text = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)
    )
    half = LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[:half]}…{text[-half:]}"


def number(value: float | None, digits: int = 0) -> str:
    """Format a number for a person; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}"


def share(part: float, whole: float, digits: int = 1) -> str:
    """Format a part of a whole in per cent; a dash where there is no whole."""
    return f"{100 * part / whole:.{digits}f} %" if whole else "–"


def duration(seconds: float | None) -> str:
    """Format seconds for a person: ``8.2 s``, ``12 min 05 s``, ``3 h 20 min``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(value: object) -> str:
    """Format a time as ``run.json`` has it (ISO 8601, or seconds since 1970) to the minute."""
    if isinstance(value, int | float):
        return f"{datetime.fromtimestamp(value, tz=UTC):%Y-%m-%d %H:%M} UTC"
    try:
        parsed = datetime.fromisoformat(str(value))
    except ValueError:
        return plain_text(value)
    return f"{parsed:%Y-%m-%d %H:%M %Z}".strip()


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """Return nested settings as rows of dotted names and values."""
    rows: list[tuple[str, object]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
