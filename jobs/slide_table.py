"""The table of slides, as a job prints it at its end."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from bloodcells.cells import SHORT_NAMES, WHITE_CELLS

MAX_SLIDES: Final = 20


def format_slides(slides: pa.Table) -> str:
    """Lay out the first slides: cells, review, corrected per cent of the white cells.

    Args:
        slides: rows in ``SLIDES_SCHEMA``.
    """
    header = [
        "slide",
        "images",
        "scored",
        "review",
        *(SHORT_NAMES[c] for c in WHITE_CELLS),
        "ERB/100",
    ]
    rows = [header, *(_cells(row) for row in slides.slice(0, MAX_SLIDES).to_pylist())]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    if len(slides) > MAX_SLIDES:
        lines.append(f"… and {len(slides) - MAX_SLIDES:,} more in slides.parquet")
    return "\n".join(lines)


def _cells(row: dict[str, object]) -> list[str]:
    return [
        # A name comes from data: nothing in it may move the cursor.
        "".join(c if c.isprintable() else "?" for c in str(row["slide_id"]))[:40],
        f"{row['num_images']:,}",
        f"{row['num_scored']:,}",
        f"{row['num_review']:,}",
        *(_number(row[f"estimate_{name}"]) for name in WHITE_CELLS),
        _number(row["estimate_erythroblast"]),
    ]


def _number(value: object) -> str:
    return "–" if value is None else f"{value:.1f}"
