"""``--since``: what earlier runs have listed, so that a store that grows is scored on.

A source may have been named otherwise then: as a part of a larger folder, cut elsewhere, or archive
by archive. So the plans of a source's folders and of what lies in it count as well, where their
images' names reach into its own. Knows nothing of Ray.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pyarrow.parquet as pq

from bloodcells import storage
from bloodcells.errors import NotFoundError, RunError
from bloodcells.parts import run_record
from bloodcells.publish import plan_files, read_plan
from bloodcells.records import Member
from bloodcells.runs import open_run
from bloodcells.stores import Source

_PLANS_AT_ONCE: Final = 16
_AFTER_SLASH: Final = "0"
"""The character after ``/``: all that is below ``uri`` sorts from ``uri/`` up to ``uri0``."""

_LAST: Final = "\U0010ffff"


class PlanSpan(NamedTuple):
    """What a plan file lists of one source: images from a first URI to a last one."""

    plan_uri: str
    first: str
    last: str


@dataclass(frozen=True, kw_only=True)
class EarlierRuns:
    """Finished runs whose images are left out.

    Attributes:
        uris: the run folders, newest first.
        plans: what lies in plan files, by the URI of the source that they list.
        source_uris: the keys of ``plans``, sorted.
    """

    uris: tuple[str, ...]
    plans: dict[str, list[PlanSpan]]
    source_uris: list[str]

    @classmethod
    def chain(cls, run_uri: str) -> EarlierRuns:
        """Find a finished run and all runs that it was itself ``--since``.

        Raises:
            RunError: one of them is no run, or is not complete.
        """
        uris: list[str] = []
        uri: str | None = run_uri
        while uri is not None and uri not in uris:
            run = open_run(uri)
            if run is None:
                raise RunError(f"--since {uri}: there is no run.json; name the folder of a run")
            if run.status != "complete":
                raise RunError(f"--since {uri}: that run is {run.status}; finish it first")
            uris.append(uri)
            uri = run.settings.since
        plan_uris = [plan_uri for uri in uris for plan_uri in plan_files(uri)]
        plans: dict[str, list[PlanSpan]] = {}
        with ThreadPoolExecutor(_PLANS_AT_ONCE) as readers:
            for listed in readers.map(_spans_in, plan_uris):
                for source_uri, span in listed.items():
                    plans.setdefault(source_uri, []).append(span)
        return cls(uris=tuple(uris), plans=plans, source_uris=sorted(plans))

    def plans_of(self, source: Source) -> list[str]:
        """Return the plan files that may list images of a source."""
        related = {source.uri}
        parent = source.uri
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            related.add(parent)
        if source.recursive:
            begin = bisect_left(self.source_uris, f"{source.uri}/")
            end = bisect_left(self.source_uris, f"{source.uri}{_AFTER_SLASH}")
            related.update(self.source_uris[begin:end])
        first, last = _reach(source)
        spans = (span for uri in related for span in self.plans.get(uri, ()))
        return sorted({span.plan_uri for span in spans if span.last > first and span.first <= last})


def known_members(plan_uris: Sequence[str]) -> Callable[[Member], bool] | None:
    """Return whether one of these plan files lists a member, unchanged since."""
    if not plan_uris:
        return None
    seen = {
        _fingerprint(member)
        for plan_uri in plan_uris
        for shard in read_plan(plan_uri)
        for member in shard.members
    }
    return lambda member: _fingerprint(member) in seen


def newest_run_beside(run_uri: str) -> str | None:
    """Return the run that was completed last among the folders beside a run folder.

    Args:
        run_uri: the run folder; neither it nor a run that builds on it counts.

    Returns:
        The run's folder; ``None`` where there is no complete run.

    Raises:
        StorageError: the folders cannot be listed or read.
    """
    parent = run_uri.rpartition("/")[0] or "/"
    try:
        folders = [entry.uri for entry in storage.listdir(parent) if entry.is_folder]
    except NotFoundError:
        return None
    with ThreadPoolExecutor(_PLANS_AT_ONCE) as readers:
        records = dict(zip(folders, readers.map(_record_or_none, folders), strict=True))
    complete = [
        (str(record.get("finished")), uri)
        for uri, record in records.items()
        if record.get("status") == "complete" and run_uri not in _line_of(uri, records)
    ]
    return max(complete)[1] if complete else None


def _record_or_none(run_uri: str) -> dict[str, Any]:
    """Return a run's record; an empty one where a folder is no run's."""
    try:
        record = run_record(run_uri)
    except RunError:
        return {}
    is_run = record.get("run_id") and isinstance(record.get("settings"), dict)
    return record if is_run else {}


def _line_of(uri: str, records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a run and those beside it on which it builds."""
    line: list[str] = []
    builds_on: str | None = uri
    while builds_on is not None and builds_on not in line:
        line.append(builds_on)
        builds_on = records.get(builds_on, {}).get("settings", {}).get("since")
    return line


def _spans_in(plan_uri: str) -> dict[str, PlanSpan]:
    """Read what a plan file lists, source by source, from its index and its footer."""
    spans: dict[str, PlanSpan] = {}
    with storage.open_read(plan_uri) as file:
        plan = pq.ParquetFile(file)
        source_uris = plan.read(columns=["source_uri"])["source_uri"].to_pylist()
        extents = _extents(plan.metadata, len(source_uris))
    for source_uri, (first, last) in zip(source_uris, extents, strict=True):
        known = spans.get(source_uri, PlanSpan(plan_uri, first, last))
        spans[source_uri] = PlanSpan(plan_uri, min(known.first, first), max(known.last, last))
    return spans


def _extents(plan: pq.FileMetaData, num_shards: int) -> list[tuple[str, str]]:
    """Return the least and the greatest ``image_uri`` of each shard, as its row group's statistics.

    All that there may be where they do not say: in a plan file that somebody else wrote.
    """
    if plan.num_row_groups != num_shards:
        return [("", _LAST)] * num_shards
    paths = [plan.schema.column(number).path for number in range(plan.num_columns)]
    place = next(number for number, path in enumerate(paths) if path.endswith(".image_uri"))
    facts = [plan.row_group(row).column(place).statistics for row in range(num_shards)]
    return [(f.min, f.max) if f is not None and f.has_min_max else ("", _LAST) for f in facts]


def _reach(source: Source) -> tuple[str, str]:
    """Return a text after which, and one up to which, every ``image_uri`` of a source lies."""
    base = source.uri.rstrip("/")
    first = f"{base}/{source.after}" if source.after else f"{base}#"
    return first, f"{base}/{source.upto}" if source.upto else f"{base}{_AFTER_SLASH}"


def _fingerprint(member: Member) -> bytes:
    text = f"{member.image_uri}\0{member.offset}\0{member.size}\0{member.tag}"
    return hashlib.blake2b(text.encode(), digest_size=12).digest()
