"""The report of a comparison of models: tables side by side, and what was done to make them.

Knows tables of text, and nothing of models or how they were trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bloodcells import storage
from bloodcells.report.page import render_page


@dataclass(frozen=True, kw_only=True)
class ComparedTable:
    """One table; ``head`` and every line of ``lines`` have the same number of cells."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table as Markdown; the first two columns are text, the others numbers."""
        rule = "|---|---|" + "--:|" * (len(self.head) - 2)
        rows = ["| " + " | ".join(cells) + " |" for cells in (self.head, *self.lines)]
        return "\n".join([f"## {self.title}", "", rows[0], rule, *rows[1:]])


def write_comparison_report(
    folder_uri: str, tables: Sequence[ComparedTable], about: Mapping[str, str], num_missing: int
) -> str:
    """Write ``report.html`` into a folder, atomically, and return its URI.

    Args:
        folder_uri: the comparison's folder.
        tables: what is shown, in order.
        about: what was done, name and sentence.
        num_missing: models that are still to be trained.

    Raises:
        StorageError: it cannot be written there.
    """
    uri = storage.join(folder_uri, "report.html")
    page = render_page("comparison.html", tables=tables, about=about, num_missing=num_missing)
    storage.put(uri, page.encode())
    return uri
