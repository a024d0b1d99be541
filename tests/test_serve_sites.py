"""Sites at the endpoint: a request names one, archive runs go on with theirs, or never had any."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from bloodcells import storage
from bloodcells.cells import CLASSES
from bloodcells.errors import ConfigurationError, RunError
from bloodcells.imaging import decode
from bloodcells.models.early_norm import statistics_of, to_text
from bloodcells.runs import Run, RunSettings
from bloodcells.scoring import Scorer
from bloodcells.sites import SiteProfile
from bloodcells.synthetic import BALANCED, draw_slide
from serve.archive_records import ArchiveRecords, ArchiveRequest
from serve.archive_site import site_of
from serve.batching import CPU_SIZES, Batcher
from serve.classify import Classifier, classify_router
from serve.doors import Doors, Person, Token
from serve.explaining import Explainer
from serve.metrics import Metrics
from serve.settings import Limits
from tests import tiny_bundle

DIGEST = "sha256:1"
TOKEN = "a" * 30
FROZEN = SiteProfile(bundle_digest=DIGEST, crop=1.26)


def begun_with(profile: SiteProfile | None, name: str) -> Run:
    settings = RunSettings(
        stores=("/store",),
        bundle_digest=DIGEST,
        site_digest=profile.digest if profile else None,
        precision="float32",
        micro_batch=32,
        compiled=False,
        shard_size=256,
        slide_pattern=None,
        since=None,
        site="given",
    )
    site = profile.to_dict() | {"uri": name} if profile else None
    return Run(uri="/run", settings=settings, bundle={}, site=site)


def test_a_run_goes_on_with_its_own_profile(tmp_path: Path) -> None:
    SiteProfile(bundle_digest=DIGEST, crop=2.0).save(str(tmp_path))  # made anew since
    run = begun_with(FROZEN, "ours")
    for sites in ({"ours": str(tmp_path)}, {}):
        assert site_of(run, "ours", sites, DIGEST) == FROZEN
    assert site_of(run, "auto", {}, DIGEST) is site_of(run, "none", {}, DIGEST) is None
    # What is not settled yet, or settled by another name, is looked up.
    for other in (None, begun_with(None, "ours"), begun_with(FROZEN, "theirs")):
        found = site_of(other, "ours", {"ours": str(tmp_path)}, DIGEST)
        assert found is not None and found.crop == 2.0
        with pytest.raises(ConfigurationError, match="no site profile ours any more"):
            site_of(other, "ours", {}, DIGEST)


def test_a_damaged_record_is_named() -> None:
    run = begun_with(FROZEN, "ours")
    run.site = {"uri": "ours"}
    with pytest.raises(RunError, match=r"/run/run\.json: its site is no site profile"):
        site_of(run, "ours", {}, DIGEST)


def test_requests_of_before_there_were_profiles_have_none(tmp_path: Path) -> None:
    records = ArchiveRecords(str(tmp_path))
    request = ArchiveRequest(
        id="0" * 32,
        stores=("/store",),
        shown=("/store",),
        out="/run",
        out_given=False,
        shard_size=256,
        slide_pattern=None,
        max_quarantine=0.2,
        created="2026-11-01T00:00:00+00:00",
        created_by="ann",
        site="auto",
    )
    records.create(request)
    uri = str(tmp_path / "archives" / f"{request.id}.json")
    assert '"site": "auto"' in storage.read(uri).decode()
    old = {name: value for name, value in asdict(request).items() if name != "site"}
    assert ArchiveRequest(**old).site == "none"


@pytest.mark.usefixtures("ray_cluster")
def test_a_request_is_answered_as_its_site_has_it() -> None:
    bundle = tiny_bundle.untrained()
    moved = to_text(statistics_of(bundle.build()) * 1.5)
    ours = SiteProfile(bundle_digest=bundle.digest, crop=1.3, statistics=moved, temperature=1.5)
    scorer = Scorer(bundle, num_threads=1, padded_sizes=CPU_SIZES)
    batcher = Batcher(scorer, max_queued=50)
    sites = {"ours": ours, "near": replace(ours, statistics=None)}
    classifier = Classifier(
        bundle, batcher, Explainer(bundle, most_waiting=8), Limits(), Metrics(), sites
    )
    anna = Person(name="anna", roles=frozenset({"classify"}))
    doors = Doors([Token(person=anna, digest=hashlib.sha256(TOKEN.encode()).digest())])
    app = FastAPI()
    app.include_router(classify_router(classifier, doors))
    cell = next(iter(draw_slide(BALANCED, 1, seed=2))).data

    async def ask() -> list[dict[str, Any]]:
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "image/jpeg"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=headers
        ) as client:
            asked = (
                client.post(f"/v1/classify?explain=true&site={name}", content=cell)
                for name in ("none", "ours", "near")
            )
            return [answer.json() for answer in await asyncio.gather(*asked)]

    answers = asyncio.run(ask())
    batcher.close()
    overlays = set()
    for answer, site in zip(answers, (None, ours, sites["near"]), strict=True):
        there = Scorer(bundle, site=site, num_threads=1)
        expected = there.probabilities(decode(cell, there.seen).pixels[None])[0]
        (image,) = answer["images"]
        given = [image["probabilities"][name] for name in CLASSES]
        np.testing.assert_allclose(given, expected, atol=1e-5)
        assert answer["site_digest"] == (site.digest if site else None)
        overlays.add(image["overlay"])
    assert len(overlays) == 3
