"""Shards grow with the store, by a rule that is known before the first is cut, and stay bounded."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloodcells.records import Shard
from bloodcells.stores import open_store, plan_source, sizing
from bloodcells.stores.listing import Source
from bloodcells.stores.sizing import (
    IMAGE_BYTES,
    MOST_SHARD_IMAGES,
    SHARD_IMAGES,
    SHARDS_WANTED,
    automatic_size,
    grown_size,
    largest_size,
)


def archives(num_images: int, each: int = 100_000) -> list[Source]:
    size = each * IMAGE_BYTES
    return [
        Source(uri=f"/s/{k}.tar", kind="tar", size=size, tag="", root="/s")
        for k in range(num_images // each)
    ]


@pytest.mark.parametrize(
    ("num_images", "expected"),
    [(10**5, 1000), (10**7, 1000), (10**8, 10_000), (5 * 10**7, 5000), (10**9, 10_000)],
)
def test_large_stores_have_large_shards(num_images: int, expected: int) -> None:
    assert automatic_size(archives(num_images), largest=MOST_SHARD_IMAGES) == expected
    assert automatic_size(archives(num_images), largest=4000) == min(4000, expected)


def test_many_folders_are_many_shards() -> None:
    folders = [Source(uri=f"/s/{k}", kind="folder", size=0, tag="", root="/s") for k in range(30)]
    assert automatic_size([], largest=MOST_SHARD_IMAGES) == SHARD_IMAGES
    assert automatic_size(folders, largest=MOST_SHARD_IMAGES) == SHARD_IMAGES
    assert automatic_size(folders * 1000, largest=MOST_SHARD_IMAGES) == 3 * SHARD_IMAGES


@given(st.integers(0, 2 * 10**9), st.integers(1, 10_000))
def test_a_source_that_turns_out_large_has_growing_shards(num_listed: int, shard_size: int) -> None:
    size = grown_size(shard_size, num_listed, 10_000)
    assert shard_size <= size <= 10_000
    assert grown_size(shard_size, num_listed, None) == shard_size
    assert grown_size(shard_size, num_listed + 10**6, 10_000) >= size


def test_a_folder_of_a_billion_is_no_million_shards() -> None:
    num_listed = num_shards = 0
    while num_listed < 10**9:
        num_listed += grown_size(SHARD_IMAGES, num_listed, 10_000)
        num_shards += 1
    assert SHARDS_WANTED < num_shards < 110_000


@given(st.integers(1, 2**40), st.integers(32, 1024))
def test_the_pixels_of_a_shard_are_bounded(pixels_bytes: int, image_px: int) -> None:
    size = largest_size(pixels_bytes, image_px)
    assert SHARD_IMAGES <= size <= MOST_SHARD_IMAGES
    assert size == SHARD_IMAGES or size * 3 * image_px**2 <= pixels_bytes
    assert size % SHARD_IMAGES == 0


def test_a_plan_grows_as_the_rule_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "GROWS_EVERY", 20)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for k in range(100):
            archive.writestr(f"{k:03}.jpg", b"x")
    (tmp_path / "slide.zip").write_bytes(content.getvalue())
    (source,) = open_store(str(tmp_path / "slide.zip")).sources()

    def sizes(largest: int | None) -> list[int]:
        shards = plan_source(source, shard_size=10, largest_shard=largest)
        return [len(item.members) for item in shards if isinstance(item, Shard)]

    assert sizes(None) == [10] * 10
    assert sizes(30) == [10, 10, 20, 30, 30]
    assert sizes(30) == sizes(30)
