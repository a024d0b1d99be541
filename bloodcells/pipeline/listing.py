"""What lists sources for a dataset. Imports no model library: a worker starts quickly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bloodcells.errors import BloodcellsError
from bloodcells.grouping import Grouping, Listed, list_source
from bloodcells.stores import ListingProblem, Source


@dataclass(frozen=True, kw_only=True)
class ListingSummary:
    """What a listing task says at its end, besides its shards.

    Attributes:
        num_ignored: files that are no images.
        problems: what could not be listed in full.
        error: why the source cannot be used; an answer, or Ray would wrap it in its own.
    """

    num_ignored: int = 0
    problems: tuple[ListingProblem, ...] = ()
    error: BloodcellsError | None = None


class Lister:
    """Lists sources one after the other, as an actor."""

    def __init__(self, grouping: Grouping) -> None:
        self._grouping = grouping

    def list_or_error(self, source: Source) -> Iterator[Listed | ListingSummary]:
        """Yield a source's shards and at last a summary."""
        num_ignored = 0
        problems: list[ListingProblem] = []
        error: BloodcellsError | None = None
        try:
            for item in list_source(source, self._grouping):
                if isinstance(item, Listed):
                    yield item
                elif isinstance(item, ListingProblem):
                    problems.append(item)
                else:
                    num_ignored += item.count
        except BloodcellsError as raised:
            error = raised
        yield ListingSummary(num_ignored=num_ignored, problems=tuple(problems), error=error)
