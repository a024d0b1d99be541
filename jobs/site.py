"""Compare a lab with the model's own: ``python -m jobs.site --store URI --out SITE``.

Looks at some hundred unlabelled pictures and writes ``report.html`` for a person, then
``site.json``, which ``jobs.score --site SITE`` and the endpoint take. No picture is copied but the
few small ones in the report. Exit codes: 0 written, 1 refused or failed, 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bloodcells import storage
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.errors import ConfigurationError, StorageError, StoreError
from bloodcells.imaging import Picture, decode_batch
from bloodcells.records import Shard
from bloodcells.report.site import (
    CELLS_SHOWN,
    Beside,
    SeenCell,
    SiteFacts,
    is_site_report,
    write_site,
)
from bloodcells.scoring import Scorer
from bloodcells.site_making import decodable, profile_of
from bloodcells.sites import (
    MIN_IMAGES,
    SITE_NAME,
    SiteProfile,
    compare_with_home,
    measure_all,
    sample_images,
)
from bloodcells.sites.sample import MOST_READ, chosen_first
from bloodcells.stores import Ignored, Store, open_store, plan_source
from bloodcells.verdicts import judge
from jobs.flags import flag, parse, printable, run_job
from jobs.progress import say

Encoded = bytes | npt.NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """Compare a lab's pictures with the model's own lab, and write how the model is to see them."""

    store: tuple[str, ...] = flag("folder, archive, table or glob; local or s3://; repeatable")
    out: str = flag("folder for site.json and report.html")
    bundle: str | None = flag("model bundle, URI or URI@sha256:…", default=None)
    beside: str | None = flag(
        "store with pictures of the model's own lab, to be shown beside the others", default=None
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    config = parse(SiteConfig, "site", argv)
    return run_job(lambda: make_site(config), goes_on=False)


def make_site(config: SiteConfig) -> SiteProfile:
    """Compare a lab with the bundle's own, write what was found, and print it in a sentence.

    Raises:
        BloodcellsError: a store or the bundle cannot be used, or the result cannot be written;
            nothing was written.
    """
    out = storage.normalise(config.out)
    _require_free(out)
    store = _opened(config.store, out)
    with _called("--beside"):
        own = _opened((config.beside,), out) if config.beside else None
    bundle_uri = config.bundle or shipped_bundle_uri()
    bundle = ModelBundle.load(bundle_uri)
    images = _sample(store)
    say(f"comparing {len(images):,} pictures with the model's own lab")
    profile = profile_of(images, bundle.home, bundle.digest, lambda: bundle)
    scorer = Scorer(bundle, num_threads=1)
    before, after = (_seen(images[:CELLS_SHOWN], scorer.at(site)) for site in (None, profile))
    with _called("--beside"):
        beside = _beside(own, bundle, scorer, after) if own else None
    facts = SiteFacts(
        stores=store.uris,
        bundle_uri=bundle_uri,
        model_name=bundle.model_name,
        preprocess=bundle.preprocess,
        profile=profile,
        home=bundle.home,
        here=np.median(measure_all(images), axis=0),
        cells=list(zip(before, after, strict=True)),
        beside=beside,
    )
    write_site(out, facts)
    for line in _told(profile, bundle):
        print(printable(line))
    print(printable(f"site profile: {storage.join(out, SITE_NAME)}"))
    print(printable(f"report: {storage.join(out, 'report.html')}"))
    return profile


def _opened(uris: Sequence[str], out: str) -> Store:
    store = open_store(uris)
    store.require_apart_from(out)
    return store


@contextmanager
def _called(name: str) -> Iterator[None]:
    """Have the errors about another store than ``--store`` name its own flag."""
    try:
        yield
    except (ConfigurationError, StorageError, StoreError) as error:
        error.args = (str(error).replace("--store", name), *error.args[1:])
        raise


def _require_free(out: str) -> None:
    """Refuse a folder whose report is another's: a run's, which has a ``site.json``, too.

    Raises:
        ConfigurationError: something lies there that no site profile has beside it.
    """
    foreign = ["run.json", "bundle.json", "dataset.json", "study.json", "evaluation.json"]
    if not storage.exists(storage.join(out, SITE_NAME)) and not is_site_report(out):
        foreign.append("report.html")
    for name in foreign:
        if storage.exists(storage.join(out, name)):
            raise ConfigurationError(
                f"--out {out} holds a {name} that is no site profile's; choose another folder"
            )


def _sample(store: Store) -> list[Encoded]:
    """Choose pictures of a store that can be decoded.

    Raises:
        StoreError: there is none.
    """
    chosen = sample_images(_sampled_shards(store), MOST_READ)
    images = decodable(chosen, isolated=True)
    if not images:
        what = f"can be decoded ({len(chosen):,} tried)" if chosen else "can be read"
        raise StoreError(
            f"no image of {', '.join(store.uris)} {what}; name a store of images with --store"
        )
    return images


def _sampled_shards(store: Store) -> list[Shard]:
    """List a store; of a large one only some shards are kept, by their ids alone.

    They are those with which ``pipeline.site_choice`` begins, where a run cuts the store alike.
    """
    heap: list[tuple[int, int, Shard]] = []
    held = 0
    for place, shard in enumerate(_listed(store)):
        rank = -int(chosen_first(shard.shard_id), 16)
        heapq.heappush(heap, (rank, place, shard))
        held += len(shard.members)
        while held - len(heap[0][2].members) >= MOST_READ:
            held -= len(heapq.heappop(heap)[2].members)
    return [shard for _, _, shard in sorted(heap, key=lambda one: -one[0])]


def _listed(store: Store) -> Iterator[Shard]:
    for source in store.sources():
        for item in plan_source(source):
            if isinstance(item, Shard):
                yield item
            elif not isinstance(item, Ignored):
                say(f"warning: {item.uri}: {item.detail}")


def _beside(store: Store, bundle: ModelBundle, scorer: Scorer, like: Sequence[SeenCell]) -> Beside:
    """Choose cells of the training lab's store, of the classes that others were given."""
    images = _sample(store)
    cells = _seen(images, scorer)
    chosen: list[SeenCell] = []
    for other in like:
        same = (cell for cell in cells if cell.predicted_class == other.predicted_class)
        cell = next(same, cells[0]) if cells else None
        if cell is not None:
            cells.remove(cell)
            chosen.append(cell)
    return Beside(
        store=", ".join(store.uris),
        cells=chosen,
        comparison=compare_with_home(images, bundle.home, bundle.digest),
    )


def _seen(images: Sequence[Encoded], scorer: Scorer) -> list[SeenCell]:
    """Return pictures as a scorer sees them, with what it says."""
    decoded = decode_batch(images, scorer.seen)
    pixels = np.stack([picture.pixels for picture in decoded if isinstance(picture, Picture)])
    verdicts = judge(scorer.outputs(pixels), scorer.bundle.calibration.at(scorer.site))
    return [
        SeenCell(
            pixels=square,
            predicted_class=str(predicted),
            confidence=float(confidence),
            out_of_domain=bool(alien),
        )
        for square, predicted, confidence, alien in zip(
            pixels,
            verdicts.predicted_class,
            verdicts.confidence,
            verdicts.out_of_domain,
            strict=True,
        )
    ]


def _told(profile: SiteProfile, bundle: ModelBundle) -> Iterator[str]:
    """Say in sentences what was found."""
    yield profile.sentence
    if profile.standing == "unknown":
        yield (
            "The bundle does not know what its own lab's pictures look like: train one anew."
            if bundle.home is None
            else f"Fewer than {MIN_IMAGES} pictures say too little: name a larger store."
        )
    if profile.changes_nothing:
        yield "They are seen as the model's own lab's: the profile changes nothing."
    else:
        yield (
            "They are seen "
            + ("by the network for other labs, " if profile.network == "elsewhere" else "")
            + f"with crop × {profile.crop:g} and density × {profile.density:g}, "
            + ("against what is usual there, " if profile.statistics else "")
            + f"and judged with temperature × {profile.temperature:g}."
        )


if __name__ == "__main__":
    sys.exit(main())
