"""Reports: pages for a person who decides, one self-contained HTML file each.

The same run folder and store give the same report.
"""

from __future__ import annotations

from collections.abc import Mapping

from bloodcells import storage
from bloodcells.cells import CLASSES, WHITE_CELLS
from bloodcells.report.data import SLIDES_SHOWN, Facts, gather
from bloodcells.report.page import render_page
from bloodcells.report.thumbnails import thumbnails

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
    storage.put(
        uri, render(facts, thumbnails(run_uri, [*facts.least_certain, *facts.alien])).encode()
    )
    return uri


def render(facts: Facts, pictures: Mapping[str, str]) -> str:
    """Return the report as HTML.

    Args:
        facts: what to show.
        pictures: ``data:`` URI by image URI; cells without one show a placeholder.
    """
    return render_page(
        "run.html",
        facts=facts,
        run=facts.run,
        pictures=pictures,
        white_cells=WHITE_CELLS,
        beside_white=[name for name in CLASSES if name not in WHITE_CELLS],
        slides_shown=SLIDES_SHOWN,
    )
