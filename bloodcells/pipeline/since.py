"""``--since``: what earlier runs have listed, so that a store that grows is scored on.

A source may have been named otherwise then: as a part of a larger folder, or archive by archive.
So the plans of a source's folders and of what lies in it count as well. Knows nothing of Ray.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import pyarrow.parquet as pq

from bloodcells import storage
from bloodcells.errors import RunError
from bloodcells.publish import plan_files, read_plan
from bloodcells.records import Member
from bloodcells.runs import open_run
from bloodcells.stores import Source

_PLANS_AT_ONCE: Final = 16
_AFTER_SLASH: Final = "0"
"""The character after ``/``: all that is below ``uri`` sorts from ``uri/`` up to ``uri0``."""


@dataclass(frozen=True, kw_only=True)
class EarlierRuns:
    """Finished runs whose images are left out.

    Attributes:
        uris: the run folders, newest first.
        plans: plan files by the URI of a source that they list.
        source_uris: the keys of ``plans``, sorted.
    """

    uris: tuple[str, ...]
    plans: dict[str, list[str]]
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
        plans: dict[str, list[str]] = {}
        with ThreadPoolExecutor(_PLANS_AT_ONCE) as readers:
            for plan_uri, listed in zip(
                plan_uris, readers.map(_sources_in, plan_uris), strict=True
            ):
                for source_uri in listed:
                    plans.setdefault(source_uri, []).append(plan_uri)
        return cls(uris=tuple(uris), plans=plans, source_uris=sorted(plans))

    def plans_of(self, source: Source) -> list[str]:
        """Return the plan files that may list images of a source."""
        related = {source.uri}
        parent = source.uri
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            related.add(parent)
        if source.recursive:
            first = bisect_left(self.source_uris, f"{source.uri}/")
            last = bisect_left(self.source_uris, f"{source.uri}{_AFTER_SLASH}")
            related.update(self.source_uris[first:last])
        return sorted({plan for uri in related for plan in self.plans.get(uri, ())})


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


def _sources_in(plan_uri: str) -> set[str]:
    with storage.open_read(plan_uri) as file:
        return set(pq.read_table(file, columns=["source_uri"])["source_uri"].to_pylist())


def _fingerprint(member: Member) -> bytes:
    text = f"{member.image_uri}\0{member.offset}\0{member.size}\0{member.tag}"
    return hashlib.blake2b(text.encode(), digest_size=12).digest()
