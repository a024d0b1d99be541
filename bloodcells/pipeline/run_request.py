"""What is asked of a run, and who does the work. Knows nothing of how either comes about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bloodcells.accounting import PlannedShard
from bloodcells.merging import MERGED_BYTES
from bloodcells.publish import ShardOutcome
from bloodcells.runs import Run
from bloodcells.sites import AUTO, SiteProfile

if TYPE_CHECKING:
    from bloodcells.bundle import ModelBundle
    from bloodcells.bundle_facts import BundleFacts

SHIPPED: Final = "shipped with bloodcells"
"""What ``run.json`` calls the place of the bundle that comes with this package."""

LATEST: Final = "latest"
"""``since`` of a request for the newest complete run beside the run folder."""


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One run as somebody asks for it.

    Attributes:
        stores: the stores' URIs.
        out: the run folder, normalised.
        bundle: the model.
        bundle_origin: where the model came from, as ``run.json`` says it.
        bundle_uri: where a worker finds it.
        site: ``auto``, ``none``, or where ``profile`` came from.
        profile: the site profile that was given, or ``None``.
        shard_size: most images in a shard; ``None`` for what suits the store.
        slide_pattern: regular expression that finds the slide, or ``None``.
        since: an earlier run, normalised, whose images are left out; ``LATEST``; or ``None``.
        max_quarantine: share of quarantined images that ends the run.
        retry_quarantined: whether shards with quarantined images are done again.
        restart: whether what is in the folder is thrown away.
        merged_bytes: what the files have into which a finished run's parts are merged.
    """

    stores: tuple[str, ...]
    out: str
    bundle: ModelBundle | BundleFacts
    bundle_origin: str
    bundle_uri: str
    shard_size: int | None
    site: str = AUTO
    profile: SiteProfile | None = None
    slide_pattern: str | None = None
    since: str | None = None
    max_quarantine: float = 0.2
    retry_quarantined: bool = False
    restart: bool = False
    merged_bytes: int = MERGED_BYTES


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Who scores, and how they compute.

    Attributes:
        device: ``cpu`` or ``cuda``.
        micro_batch: images in a forward pass.
        compiled: whether the model is compiled first.
        planning_cpus: cores that the listing of one source books.
        description: the crew in words.
        score: scores and publishes a wave of shards of a run; yields what became of each, in order
            of completion. It may stop before the wave is done, to regroup, and is then called again
            with what is left. It is for the crew to stop where the follower says so.
        leave: called when the run needs its crew no longer.
    """

    device: str
    micro_batch: int
    compiled: bool
    planning_cpus: float
    description: str
    score: Callable[[Run, Sequence[PlannedShard]], Iterator[ShardOutcome]]
    leave: Callable[[], None] = lambda: None
