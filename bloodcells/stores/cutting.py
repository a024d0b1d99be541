"""Cuts the listing of a large folder into parts, so that several tasks list it side by side.

S3 lists keys in order, a thousand a request, and can begin after any key. What keys there are is
not known beforehand; where names first differ is found by bisection, a small request a step. Any
border is right, for the parts meet there; a good one only makes them alike in size. Knows nothing
of images.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from typing import Final

from bloodcells import storage
from bloodcells.stores.listing import Source

MOST_PARTS: Final = 32
"""Parts of one cut, each a request to find; a large one is cut again when it is listed."""

_LAST: Final = "\U0010ffff"
"""The greatest character: ``name + _LAST`` is behind all that begins with ``name``."""

_STEMS_TRIED: Final = 4


class _NoOrderError(Exception):
    """The server answered a name that is not after the one it was to begin at."""


def cut(source: Source) -> list[Source] | None:
    """Cut a folder on S3 into parts that together hold exactly what it holds.

    Args:
        source: a recursive folder, or a part of one.

    Returns:
        The parts, in order: one where its names give no place to cut, none where nothing is in it;
        ``None`` where the server cannot list from a name on, so that it must be listed in one go.
    """

    def next_name(after: str) -> str | None:
        name = storage.next_name(source.uri, after)
        if name is not None and name <= after:
            raise _NoOrderError
        return None if name is None or (source.upto and name > source.upto) else name

    try:
        if next_name(source.after) is None:
            return []
        names = borders(next_name, source.after, MOST_PARTS)
    except _NoOrderError:
        return None
    edges = pairwise((source.after, *names, source.upto))
    return [replace(source, after=after, upto=upto) for after, upto in edges]


def borders(next_name: Callable[[str], str | None], after: str, most: int) -> list[str]:
    """Find where to cut what comes after ``after`` into at most ``most`` parts, in order.

    The names are told apart by the first character in which any of them differ; a part ends where
    the last name with one such character does.

    Args:
        next_name: returns the least name that is greater than a text, ``None`` if there is none.
        after: where the listing begins.
        most: parts that are wanted.

    Returns:
        Texts, rarely names themselves: a part is what is greater than one and not than the next.
    """

    def end_of(name: str, depth: int) -> str:
        """Return a text behind all that share the first ``depth + 1`` characters of a name."""
        return max(name, name[: depth + 1] + _LAST)

    def where_others_differ(name: str) -> int:
        """Return the first depth that some later name does not share, the length if all do."""
        depths = range(len(name))
        return bisect_left(depths, True, key=lambda d: next_name(end_of(name, d)) is not None)

    def ends(name: str, depth: int) -> Iterator[str]:
        while (other := next_name(end := end_of(name, depth))) is not None:
            yield end
            name = other

    name = next_name(after)
    for _ in range(_STEMS_TRIED):
        if name is None:
            break
        depth = where_others_differ(name)
        if depth < len(name):
            return list(islice(ends(name, depth), most - 1))
        name = next_name(name)  # all later names begin with this one
    return []
