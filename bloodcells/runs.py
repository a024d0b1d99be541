"""The run folder's own record, ``run.json``: what was asked, with what, and what came of it.

Knows nothing of how shards are scored or of Ray.
"""

from __future__ import annotations

import datetime
import json
import platform
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, Final, Literal

import pyarrow as pa

from bloodcells import storage
from bloodcells.errors import NotFoundError, RunError, RunMismatchError, RunSupersededError
from bloodcells.sites.profile import SITE_NAME, SiteProfile
from bloodcells.storage import Traffic

Status = Literal["planning", "running", "incomplete", "complete"]

RUN_NAME: Final = "run.json"
RUN_TABLES: Final = ("merged", "scores", "quarantine", "plan")
"""The folders of a run, commit marks before what they vouch for."""

RUN_RESULTS: Final = ("slides.parquet", "report.html")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the content of a run depends on; a run folder is continued only with the same.

    Attributes:
        stores: the stores' URIs, normalised.
        bundle_digest: the model.
        site_digest: the site profile, ``None`` for none, or as long as ``auto`` has not made one.
        precision: ``float32`` or ``bfloat16``.
        micro_batch: images in one forward pass.
        compiled: whether ``torch.compile`` made the model's code.
        shard_size: most images in a shard.
        slide_pattern: regular expression that finds the slide in ``image_uri``, or ``None``.
        since: the earlier run whose images are left out, or ``None``.
        site: ``none``, ``auto`` (a profile made of the store itself), or ``given``.
        largest_shard: images up to which shards grow in a source that turns out to be large;
            ``None`` where a ``shard_size`` was asked for.
    """

    stores: tuple[str, ...]
    bundle_digest: str
    site_digest: str | None
    precision: str
    micro_batch: int
    compiled: bool
    shard_size: int
    slide_pattern: str | None
    since: str | None
    largest_shard: int | None = None
    site: str = "none"


@dataclass(kw_only=True)
class Run:
    """``run.json`` in memory.

    Attributes:
        uri: the run folder.
        run_id: random, new with every ``--restart``; a worker of an earlier run that finds another
            id than its own publishes nothing.
        status: ``planning`` until the plan is saved, then ``running``; ``complete`` once every
            listed image is accounted for; ``incomplete`` where work is left over.
        settings: what the content depends on.
        bundle: where the model came from: ``uri``, ``digest``, ``model_name``, ``precision``; and
            what is ``measured`` of it with other pictures than its home's.
        site: where the store comes from, as far as its pictures tell: the profile's ``standing``,
            ``distance`` and ``threshold``, a ``sentence`` for a person, ``digest`` and ``uri``;
            ``None`` with ``--site none``.
        counts: ``listed``, ``scored``, ``quarantined``, ``shards``, ``ignored``.
        source_problems: sources that were not listed in full: ``uri`` and ``detail``.
        missing: shards that are left over, the first of them: ``shard_id`` and ``error``.
        timings: seconds and images per second of the last session that scored anything.
        merging: whether all shards are done and their files are being merged, or are merged; from
            then on nothing is published, by whatever worker of an earlier session.
        storage: requests to S3 and what was tried again, of all sessions: the fields of
            ``storage.Traffic``. What a killed process had asked for is not in it, nor what is asked
            once the record is written (for the report). Empty where no S3 was used.
    """

    uri: str
    settings: RunSettings
    bundle: dict[str, Any]
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    status: Status = "planning"
    created: str = field(default_factory=lambda: now())
    finished: str | None = None
    site: dict[str, Any] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    source_problems: list[dict[str, str]] = field(default_factory=list)
    missing: list[dict[str, str]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    merging: bool = False
    storage: dict[str, int] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=lambda: environment())

    def save(self) -> None:
        """Write ``run.json``, atomically."""
        record = asdict(self)
        del record["uri"]
        record["stores"] = list(self.settings.stores)
        storage.put(run_json_uri(self.uri), json.dumps(record, indent=2).encode() + b"\n")

    @property
    def profile(self) -> SiteProfile | None:
        """The site profile by which the run's images are seen; ``None`` for none.

        Raises:
            RunError: what ``run.json`` says of it is damaged.
        """
        try:
            return SiteProfile.of(self.site) if self.site else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{run_json_uri(self.uri)}: its site is no site profile ({type(error).__name__}: "
                f"{error}); put the record back as it was, or start anew there with --restart"
            ) from error

    def add_traffic(self, traffic: Traffic) -> None:
        """Add what some part of the work asked of storage."""
        if traffic:
            for name, number in asdict(traffic).items():
                self.storage[name] = self.storage.get(name, 0) + number

    def require_same(self, asked: RunSettings) -> None:
        """Refuse to continue this run with other settings.

        Raises:
            RunMismatchError: names each setting that differs, with both values.
        """
        here = asdict(self.settings)
        differences = [
            f"{name}: {_shown(here[name])} in the folder, {_shown(value)} asked for"
            for name, value in asdict(asked).items()
            if here[name] != value
        ]
        if differences:
            raise RunMismatchError(
                f"{self.uri} was made with other settings ({'; '.join(differences)}). Choose "
                "another --out, ask for the same, or start anew there with --restart"
            )


def run_json_uri(run_uri: str) -> str:
    """Return the URI of a run folder's record."""
    return storage.join(run_uri, RUN_NAME)


def open_run(run_uri: str) -> Run | None:
    """Read a run folder's record; ``None`` where there is no run.

    Raises:
        RunError: ``run.json`` is there but is not one of ours.
    """
    try:
        record = json.loads(storage.read(run_json_uri(run_uri)))
        settings = dict(record.pop("settings"))
        record.pop("stores")
        return Run(
            uri=run_uri,
            settings=RunSettings(**{**settings, "stores": tuple(settings["stores"])}),
            **record,
        )
    except NotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{run_json_uri(run_uri)} is not a run's record ({type(error).__name__}: {error}); "
            "choose another --out, or start anew there with --restart"
        ) from error


def require_ownership(run_uri: str, run_id: str) -> None:
    """Make sure that a folder still waits for a run's shards, right before one is published there.

    Raises:
        RunSupersededError: it was started anew since: its plan is another. Or its shards are all
            done, and a part that came now would stand beside the merged file that has its rows.
    """
    owner, merging = _owner(run_uri)
    if owner != run_id:
        raise RunSupersededError(f"{run_uri} was started anew by another run; this one stops")
    if merging:
        raise RunSupersededError(f"{run_uri} has all its shards by now; this worker stops")


def require_merging(run_uri: str, run_id: str) -> None:
    """Make sure that a folder is still a run's own whose files are to be merged.

    Raises:
        RunSupersededError: it is not.
    """
    if _owner(run_uri) != (run_id, True):
        raise RunSupersededError(f"{run_uri} is another run's by now; its files are not merged")


def _owner(run_uri: str) -> tuple[str, bool]:
    record = json.loads(storage.read(run_json_uri(run_uri)))
    return str(record["run_id"]), bool(record.get("merging"))


def require_vacant(run_uri: str) -> None:
    """Refuse a folder in which a run would throw away what is no run's.

    Raises:
        RunError: there is no ``run.json``, but something where a run has its tables.
    """
    if storage.exists(run_json_uri(run_uri)):
        return
    for table in RUN_TABLES:
        if storage.exists(storage.join(run_uri, table)):
            raise RunError(
                f"{storage.join(run_uri, table)} exists, but there is no {RUN_NAME} beside it: it "
                "may be no run's; choose another --out, or take it away"
            )


def clear_tables(run_uri: str) -> None:
    """Empty a run folder but for its record."""
    for table in RUN_TABLES:
        storage.delete(storage.join(run_uri, table), recursive=True)
    storage.delete(storage.join(run_uri, SITE_NAME))
    clear_results(run_uri)


def clear_results(run_uri: str) -> None:
    """Take away what was made of a run's scores: they will not be the same."""
    for name in RUN_RESULTS:
        storage.delete(storage.join(run_uri, name))


def environment() -> dict[str, str]:
    """Return the versions that a score may depend on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "bloodcells": version("bloodcells"),
        "ray": version("ray"),
        "torch": version("torch"),
        "timm": version("timm"),
        "pyarrow": pa.__version__,
    }


def now() -> str:
    """Return the present time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def summary(counts: Mapping[str, int]) -> str:
    """Return a run's counts as a sentence."""
    return (
        f"{counts.get('listed', 0):,} images listed, {counts.get('scored', 0):,} scored, "
        f"{counts.get('quarantined', 0):,} quarantined, in {counts.get('shards', 0):,} shards"
    )


def retries_in_words(traffic: Mapping[str, int]) -> str:
    """Return what was asked of storage more than once, as a sentence; empty where nothing was.

    Args:
        traffic: the field ``storage`` of a run.
    """
    retries = {
        "because the storage asked for fewer": traffic.get("retries_throttled", 0),
        "after an error of the storage": traffic.get("retries_server", 0),
        "after a connection was lost": traffic.get("retries_connection", 0),
    }
    if not any(retries.values()):
        return ""
    why = ", ".join(f"{number:,} {reason}" for reason, number in retries.items() if number)
    return (
        f"of {traffic.get('requests', 0):,} requests to S3, {sum(retries.values()):,} were tried "
        f"again: {why}"
    )
