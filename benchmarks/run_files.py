"""What lies in a run folder, for those who measure how it grows."""

from __future__ import annotations

from pathlib import Path


def table_files(run: Path) -> dict[str, dict[str, int]]:
    """Return the number of files in each of a run folder's tables, and their bytes."""
    found = {}
    for table in ("plan", "scores", "quarantine", "merged"):
        sizes = [path.stat().st_size for path in (run / table).glob("*")]
        found[table] = {"files": len(sizes), "bytes": sum(sizes)}
    return found
