"""The site profile that an archive run goes on with, and requests of before there were any."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from bloodcells import storage
from bloodcells.errors import ConfigurationError, RunError
from bloodcells.runs import Run, RunSettings
from bloodcells.sites import SiteProfile
from serve.archive_records import ArchiveRecords, ArchiveRequest
from serve.archive_site import site_of

DIGEST = "sha256:1"
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
