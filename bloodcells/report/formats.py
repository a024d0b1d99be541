"""Values as a person reads them: filters of the pages' templates. Knows nothing of pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

LONGEST_TEXT: Final = 160
"""Names and messages are shown up to this many characters, their middle left out."""


def plain_text(value: object, longest: int = LONGEST_TEXT) -> str:
    """Make any value safe and short to look at.

    What does not print (terminal escapes, line breaks, marks that turn the direction of writing)
    is shown as its escape, so that no name can pass for another.
    """
    text = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)
    )
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


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
