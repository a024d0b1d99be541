"""From what a user names to a store: globs, overlaps, and the sources that are planned in parallel.

Lists top levels only; knows nothing of what is in an archive.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Final

from bloodcells import storage
from bloodcells.errors import ConfigurationError, NotFoundError, StoreError
from bloodcells.stores.cutting import cut
from bloodcells.stores.folder import archive_source
from bloodcells.stores.listing import Source
from bloodcells.stores.naming import is_hidden

_WILDCARD = re.compile(r"[*?\[]")

MOST_AT_TOP: Final = 5_000
"""Files and folders at the top of a store on S3 that are listed one by one before it is cut."""

_KINDS = "a folder, or a .tar, .tar.gz, .zip, .parquet or .npz file"


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where images live: folders, archives and tables that were found.

    Attributes:
        uris: normalised, sorted, none inside another.
        slide_pattern: regular expression for the slide of an image, or ``None``.
    """

    uris: tuple[str, ...]
    slide_pattern: str | None = None

    def require_apart_from(self, run_uri: str) -> None:
        """Refuse a run folder inside a store, or a store inside it.

        Raises:
            ConfigurationError: they overlap.
        """
        for uri in self.uris:
            if f"{uri}/".startswith(f"{run_uri}/") or f"{run_uri}/".startswith(f"{uri}/"):
                raise ConfigurationError(
                    f"--out {run_uri} and --store {uri} lie one in the other; scores are not "
                    "written among images: choose another --out"
                )

    def sources(self) -> list[Source]:
        """List the parts to plan: one an archive, one a top-level folder, one for loose files.

        A store on S3 with more than ``MOST_AT_TOP`` of these is cut by names instead.

        Raises:
            StoreError: a file is of no known kind, or there is nothing at all.
        """
        found = (source for uri in self.uris for source in _sources_at(uri))
        sources = sorted(found, key=lambda source: (source.uri, source.recursive, source.after))
        if not sources:
            raise StoreError(f"{', '.join(self.uris)} is empty; name a store that holds images.")
        return sources


def open_store(uris: str | Sequence[str], *, slide_pattern: str | None = None) -> Store:
    """Find the images' store or stores; nothing is listed yet.

    Args:
        uris: one or more URIs of folders, archives or tables, local or ``s3://``. ``*``, ``?`` and
            ``[…]`` match within one component of a path, unless there is a file of that very name.
        slide_pattern: searched for in each ``image_uri``; its group ``slide``, else its first
            group, else all that it matches is the image's slide. Images that it does not match,
            and all where it is ``None``, get the slide of their archive or folder.

    Raises:
        NotFoundError: nothing is at a URI, or nothing matches it.
        StoreError: two of them overlap.
        ConfigurationError: the pattern is no regular expression, or a URI has an unknown scheme.
    """
    if slide_pattern is not None:
        try:
            re.compile(slide_pattern)
        except re.error as error:
            raise ConfigurationError(
                f"--slide-pattern {slide_pattern!r} is no regular expression: {error}."
            ) from error
    given = [uris] if isinstance(uris, str) else list(uris)
    if not given:
        raise ConfigurationError("No store was named; give at least one --store URI.")
    found = sorted(uri for pattern in given for uri in _expanded(pattern))
    _refuse_overlaps(found)
    return Store(uris=tuple(found), slide_pattern=slide_pattern)


def _expanded(pattern: str) -> list[str]:
    uri = storage.normalise(pattern)
    if storage.exists(uri):
        return [uri]
    wildcard = _WILDCARD.search(uri)
    if wildcard is None:
        raise NotFoundError(f"{pattern} does not exist; check --store.")
    parent, _, rest = uri[: wildcard.start()].rpartition("/")
    try:
        matches = list(_matches(parent or "/", (rest + uri[wildcard.start() :]).split("/")))
    except NotFoundError:
        matches = []
    if not matches:
        raise NotFoundError(f"{pattern} matches nothing; check --store.")
    # A link that the user's own pattern names is meant.
    return [storage.normalise(match) for match in matches]


def _matches(folder: str, components: list[str]) -> Iterator[str]:
    for entry in storage.listdir(folder):
        if is_hidden(entry.name) or not fnmatch.fnmatchcase(entry.name, components[0]):
            continue
        if len(components) == 1:
            yield entry.uri
        elif entry.is_folder or entry.is_link:
            yield from _matches(entry.uri, components[1:])


def _refuse_overlaps(uris: Sequence[str]) -> None:
    seen = set()
    for uri in uris:
        if uri in seen:
            raise StoreError(f"{uri} is named twice; every image is scored once: name it once.")
        parents = uri
        while "/" in parents:
            parents = parents.rpartition("/")[0]
            if (parents or "/") in seen:
                raise StoreError(f"{uri} lies inside {parents or '/'}; name only one of them.")
        seen.add(uri)


def _sources_at(uri: str) -> Iterator[Source]:
    root = storage.stat(uri)
    if not root.is_folder:
        source = archive_source(root, uri)
        if source is None:
            raise StoreError(f"{uri} is no store of images; name {_KINDS}.")
        yield source
        return
    whole = Source(uri=uri, kind="folder", size=0, tag="", root=uri)
    entries = storage.listdir(uri, ordered=False)
    if storage.lists_from_anywhere(uri):
        first = list(islice(entries, MOST_AT_TOP))
        if len(first) == MOST_AT_TOP and (parts := cut(whole)):
            yield from parts
            return
        entries = chain(first, entries)
    has_loose_files = False
    for entry in entries:
        if is_hidden(entry.name):
            continue
        if entry.is_folder:
            yield Source(uri=entry.uri, kind="folder", size=0, tag="", root=uri)
        elif not entry.is_link and (source := archive_source(entry, uri)) is not None:
            yield source
        else:
            has_loose_files = True
    if has_loose_files:
        yield replace(whole, recursive=False)
