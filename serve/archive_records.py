"""What is kept of archive runs beside their run folders: who asked for what, and how it stands.

``ROOT/archives/<id>.json`` is the request, written by the endpoint; ``ROOT/notes/<id>.json`` is
what the keeper last said of the run. A note can be lost without harm: the run folder knows better.
Knows nothing of Ray or of HTTP.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeVar

from bloodcells import storage
from bloodcells.errors import NotFoundError
from bloodcells.sites import NONE

Status = Literal["queued", "planning", "running", "incomplete", "cancelled", "failed", "complete"]

OPEN: Final = ("queued", "planning", "running")
"""A run in one of these goes on by itself; in any other it waits for a person, or is done."""

_ID: Final = re.compile(r"[0-9a-f]{32}")
_COUNTS: Final = ("listed", "scored", "quarantined", "shards", "shards_done")


@dataclass(frozen=True, kw_only=True)
class ArchiveRequest:
    """An archive run as somebody asked for it.

    Attributes:
        id: 32 hex digits.
        stores: URIs to score, in their one spelling.
        shown: what the client called them.
        out: the run folder.
        out_given: whether the client named it; else it lies below the root.
        shard_size, slide_pattern, max_quarantine: see ``RunRequest``.
        created: UTC, ISO 8601.
        created_by: the person.
        site: ``auto``, ``none`` or the name of a site profile of the endpoint. Requests of before
            there were any say nothing, and have none.
        wanted: what is to become of it.
        asked: how often somebody has asked to go on with it.
        nonce: tells two requests with one id apart.
    """

    id: str
    stores: tuple[str, ...]
    shown: tuple[str, ...]
    out: str
    out_given: bool
    shard_size: int
    slide_pattern: str | None
    max_quarantine: float
    created: str
    created_by: str
    site: str = NONE
    wanted: Literal["complete", "cancelled"] = "complete"
    asked: int = 0
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, kw_only=True)
class Note:
    """How a run stands, as its keeper last said.

    Attributes:
        status: see ``Status``.
        asked: the request's ``asked`` that it answers; a note of an older one is out of date.
        message: a sentence for a person, or ``None``.
        counts: ``listed``, ``scored``, ``quarantined``, ``shards``, ``shards_done``.
        images_per_second, seconds_left: of late; ``None`` where nothing goes on.
        bundle_digest: the model, once it is settled.
        site: the run's site profile, once it is settled, as ``run.json`` has it.
        problems: sources that were not listed in full: ``uri`` and ``detail``.
    """

    status: Status
    asked: int
    message: str | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    images_per_second: float | None = None
    seconds_left: float | None = None
    bundle_digest: str | None = None
    site: dict[str, Any] | None = None
    problems: list[dict[str, str]] = field(default_factory=list)


class ArchiveRecords:
    """The requests and notes below a root; safe in threads.

    Args:
        root_uri: the root, normalised.
    """

    def __init__(self, root_uri: str) -> None:
        self.root_uri = root_uri
        self._requests = _JsonFolder(storage.join(root_uri, "archives"))
        self._notes = _JsonFolder(storage.join(root_uri, "notes"))

    def run_folder(self, archive_id: str) -> str:
        """Return the run folder of an archive whose client named none."""
        return storage.join(self.root_uri, "runs", archive_id)

    def create(self, request: ArchiveRequest) -> ArchiveRequest:
        """Keep a new request; returns the one that is kept, which may be an older one of its id."""
        if self._requests.create(request.id, asdict(request)):
            return request
        found = self.request(request.id)
        return found or request

    def save(self, request: ArchiveRequest) -> None:
        """Keep a request that was changed."""
        self._requests.put(request.id, asdict(request))

    def request(self, archive_id: str) -> ArchiveRequest | None:
        """Return a request; ``None`` where there is none, or the id is no id."""
        if not _ID.fullmatch(archive_id):
            return None
        return _made(ArchiveRequest, self._requests.get(archive_id))

    def requests(self) -> list[ArchiveRequest]:
        """Return all requests, oldest first; only those that changed are read again."""
        made = (_made(ArchiveRequest, content) for content in self._requests.all().values())
        return sorted(
            (request for request in made if request is not None),
            key=lambda request: (request.created, request.id),
        )

    def note(self, archive_id: str) -> Note | None:
        """Return what the keeper last said of a run, if anything."""
        return _made(Note, self._notes.get(archive_id))

    def notes(self) -> dict[str, Note]:
        """Return all notes by id; only those that changed are read again."""
        made = {name: _made(Note, content) for name, content in self._notes.all().items()}
        return {name: note for name, note in made.items() if note is not None}

    def save_note(self, archive_id: str, note: Note) -> None:
        """Keep a note."""
        self._notes.put(archive_id, asdict(note))


class _JsonFolder:
    """A folder of small JSON objects; one that did not change is not read twice."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._known: dict[str, tuple[str, int, dict[str, Any] | None]] = {}
        self._lock = threading.Lock()

    def create(self, name: str, content: dict[str, Any]) -> bool:
        return storage.put_if_absent(self._at(name), _json(content))

    def put(self, name: str, content: dict[str, Any]) -> None:
        storage.put(self._at(name), _json(content))

    def get(self, name: str) -> dict[str, Any] | None:
        try:
            content = json.loads(storage.read(self._at(name)))
        except (NotFoundError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def all(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            known: dict[str, tuple[str, int, dict[str, Any] | None]] = {}
            try:
                for entry in storage.listdir(self._uri):
                    name = entry.name.removesuffix(".json")
                    if not _ID.fullmatch(name) or entry.name == name:
                        continue
                    before = self._known.get(name)
                    if before is None or before[:2] != (entry.tag, entry.size):
                        before = (entry.tag, entry.size, self.get(name))
                    known[name] = before
            except NotFoundError:
                pass  # nothing was kept yet
            self._known = known
            return {name: content for name, (_, _, content) in known.items() if content}

    def _at(self, name: str) -> str:
        return storage.join(self._uri, f"{name}.json")


_Made = TypeVar("_Made", ArchiveRequest, Note)


def _made(kind: type[_Made], content: dict[str, Any] | None) -> _Made | None:
    """Return a record, unless it is damaged or of another version: then it is as if not there."""
    if content is None:
        return None
    try:
        fields: dict[str, Any] = {
            name: tuple(value) if name in ("stores", "shown") else value
            for name, value in content.items()
        }
        return kind(**fields)
    except TypeError:
        return None


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"
