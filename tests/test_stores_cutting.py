"""A listing that several tasks share gives exactly the keys of one listing, each once."""

from __future__ import annotations

import random
import string
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bloodcells import storage
from bloodcells.errors import StorageError
from bloodcells.pipeline import planning
from bloodcells.records import Shard
from bloodcells.stores import Source, open_store, opening, plan_part, plan_source
from bloodcells.stores.cutting import MOST_PARTS, borders, cut
from tests.s3 import S3Server
from tests.store_kinds import some_images, tar_bytes

NAMES = st.text(
    st.characters(exclude_categories=("Cs",))  # no UTF-8 for half of a surrogate pair
    | st.sampled_from("/ab0.-#?%+ \x7fé\U0010ffff"),
    min_size=1,
    max_size=12,
)


class Listing:
    """Names as a server lists them, and how often it was asked."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = sorted(set(names), key=str.encode)
        self.num_asked = 0

    def next_name(self, after: str) -> str | None:
        self.num_asked += 1
        place = bisect_right(self.names, after)
        return self.names[place] if place < len(self.names) else None

    def parts(self, after: str, edges: Sequence[str]) -> list[list[str]]:
        return [
            [name for name in self.names if name > low and (not high or name <= high)]
            for low, high in pairwise((after, *edges, ""))
        ]


@given(st.lists(NAMES, max_size=60), NAMES | st.just(""), st.integers(2, 40))
@example(["a", "ab", "abc", "abcd", "abcde", "abcdef"], "", 3)
@example(["\U0010ffff", "\U0010ffff\U0010ffff", "\U0010ffff\U0010ffffa"], "", 3)
@example(["x/", "x/a", "x/b"], "", 3)
def test_parts_hold_what_the_whole_holds(names: list[str], after: str, most: int) -> None:
    listing = Listing(names)
    edges = borders(listing.next_name, after, most)
    assert len(edges) < most
    assert all(low < high for low, high in pairwise([after, *edges]))
    parts = listing.parts(after, edges)
    assert list(chain.from_iterable(parts)) == [name for name in listing.names if name > after]
    assert listing.num_asked <= most + 30


ALPHABETS: dict[str, Callable[[random.Random, int], str]] = {
    "counters": lambda rng, k: f"cell-{k:06d}.jpg",
    "hashes": lambda rng, k: f"{rng.getrandbits(64):016x}.png",
    "folders": lambda rng, k: f"lab/slide-{k // 100:04d}/cell-{k % 100:03d}.jpg",
    "words": lambda rng, k: "".join(rng.choices(string.ascii_letters, k=8)),
    "one large folder of many": lambda rng, k: f"{k % 50 if k < 500 else 7:03d}/{k:06d}.jpg",
}


@pytest.mark.parametrize("kind", ALPHABETS)
def test_usual_names_are_cut_again_and_again_into_small_parts(kind: str) -> None:
    """As the tasks do it: each lists its first thousand and cuts what is left."""
    rng = random.Random(1)
    listing = Listing([ALPHABETS[kind](rng, k) for k in range(20_000)])
    to_do, rounds, listed = [("", "")], 0, []
    while to_do:
        rounds += 1
        left = []
        for after, upto in to_do:
            names = [n for n in listing.names if n > after and (not upto or n <= upto)]
            listed += names[:1000]
            if len(names) > 1000:

                def next_name(start: str, upto: str = upto) -> str | None:
                    name = listing.next_name(start)
                    return None if name is None or (upto and name > upto) else name

                edges = borders(next_name, names[999], MOST_PARTS)
                left += pairwise((names[999], *edges, upto))
        to_do = left
    assert sorted(listed) == listing.names
    assert rounds <= 5  # one after the other would be twenty


KEYS = {
    "counters": [f"cell-{k:03d}.jpg" for k in range(60)],
    "prefixes of each other": ["a" * length + ".jpg" for length in range(1, 30)]
    + ["a" * length for length in range(1, 30)],
    "marks": [f"q{mark}{k}.jpg" for mark in "?&#%+ !*'()@:;,=[]~^|é漢\U0001f52c" for k in range(3)],
    "folders": [f"s{k // 5}/{k % 5}.png" for k in range(50)] + ["s", "s3", "s3.jpg", "t/u/v/w.jpg"],
    "few and many": ["a.jpg", "z.jpg", *(f"m/{k:03d}.jpg" for k in range(60)), "n/1.jpg"],
}


def write(root: str, names: Sequence[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.put(f"{root}/{name}", name.encode()), names))


def folder(root: str, **more: object) -> Source:
    return Source(uri=root, kind="folder", size=0, tag="", root=root, **more)  # type: ignore[arg-type]


def names_in(source: Source) -> list[str]:
    start = len(source.uri) + 1
    found = storage.walk(source.uri, after=source.after, upto=source.upto)
    return [entry.uri[start:] for entry in found]


def images_in(sources: Sequence[Source], at_most: int = 0) -> list[str]:
    """Return the URIs of all images that planning some sources finds."""
    return [
        member.image_uri
        for source in sources
        for shard in plan_source(replace(source, at_most=at_most), shard_size=10)
        if isinstance(shard, Shard)
        for member in shard.members
    ]


@pytest.mark.parametrize("kind", KEYS)
def test_parts_of_a_listing_are_listed_exactly(ordered_s3: S3Server, kind: str) -> None:
    root = f"{ordered_s3.uri}/parts/{kind}"
    write(root, KEYS[kind])
    whole = sorted(KEYS[kind], key=str.encode)
    assert names_in(folder(root)) == whole
    parts = cut(folder(root))
    assert parts is not None and len(parts) > 1
    assert list(chain.from_iterable(map(names_in, parts))) == whole
    again = [piece for part in parts for piece in cut(part) or ()]
    assert list(chain.from_iterable(map(names_in, again))) == whole
    for name in whole[::7]:
        assert names_in(folder(root, after=name)) == whole[whole.index(name) + 1 :]
        assert names_in(folder(root, upto=name)) == whole[: whole.index(name) + 1]


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("at_most", [1, 7, 50])
def test_what_a_task_leaves_is_planned_by_others(
    ordered_s3: S3Server, kind: str, at_most: int
) -> None:
    root = f"{ordered_s3.uri}/left/{kind}"
    if not storage.exists(root):
        write(root, KEYS[kind])
    whole = images_in([folder(root)])
    assert len(whole) == sum(name.endswith((".jpg", ".png")) for name in KEYS[kind])
    assert sorted(images_in([folder(root)], at_most)) == sorted(whole)


def test_a_task_lists_no_more_than_it_should(ordered_s3: S3Server) -> None:
    root = f"{ordered_s3.uri}/bounded"
    write(root, [*KEYS["counters"], "cell-010.tar"])
    found = list(plan_part(folder(root, at_most=20), shard_size=8))
    shards = [item for item in found if isinstance(item, Shard)]
    assert [len(shard.members) for shard in shards] == [8, 8, 3]
    handed_on = [item for item in found if isinstance(item, Source)]
    assert handed_on[0].uri == f"{root}/cell-010.tar"
    assert all(part.after >= "cell-018.jpg" for part in handed_on[1:])
    assert len(handed_on) > 3


def test_a_store_with_much_at_its_top_is_cut(
    ordered_s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{ordered_s3.uri}/top"
    write(root, [*KEYS["counters"], "deep/er/one.jpg", "notes.txt"])
    images = some_images(5)
    for name in ("cell-030.tar", "deep/two.tar"):
        storage.put(f"{root}/{name}", tar_bytes(images.items()))
    plain = images_in(open_store(root).sources())
    assert len(set(plain)) == len(plain) == len(KEYS["counters"]) + 1 + 2 * len(images)
    monkeypatch.setattr(opening, "MOST_AT_TOP", 20)
    sources = open_store(root).sources()
    assert len(sources) > 1
    assert all(source.uri == root and source.recursive for source in sources)
    assert sorted(images_in(sources)) == sorted(plain)
    assert len({planning._source_id(source) for source in sources}) == len(sources)


def test_a_part_whose_keys_are_gone_is_empty(ordered_s3: S3Server) -> None:
    root = f"{ordered_s3.uri}/gone"
    write(root, ["a.jpg", "b.jpg"])
    assert names_in(folder(root, after="b.jpg")) == []
    assert cut(folder(root, after="b.jpg")) == []
    assert names_in(folder(root, after="a.jpg", upto="a.jpg")) == []


def test_a_server_that_lists_otherwise_is_listed_in_one_go(s3: S3Server) -> None:
    """Its order and where it begins may be what they like: nothing is lost, nothing comes twice."""
    for kind, names in KEYS.items():
        if kind in ("folders", "prefixes of each other"):
            continue  # on this server's disk a name is a file or a folder, not both
        root = f"{s3.uri}/otherwise/{kind}"
        for name in reversed(names):
            storage.put(f"{root}/{name}", name.encode())
        whole = images_in([folder(root)])
        assert len(whole) == len(names)
        assert sorted(images_in([folder(root)], at_most=5)) == sorted(whole)


def test_parts_of_a_listing_without_order_are_refused(
    ordered_s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{ordered_s3.uri}/disorder"
    write(root, ["a.jpg", "b.jpg", "c.jpg"])
    pages = storage.s3._pages

    def reversed_pages(*args: str) -> object:
        for page in pages(*args):
            yield {**page, "Contents": page["Contents"][::-1]}

    monkeypatch.setattr(storage.s3, "_pages", reversed_pages)
    with pytest.raises(StorageError, match=r"disorder is listed out of order.*c\.jpg"):
        names_in(folder(root, after="a.jpg"))


def test_a_part_of_a_folder_on_disk(tmp_path: Path) -> None:
    write(str(tmp_path), ["a.jpg", "b/1.jpg", "b/2.jpg", "b.jpg", "c.jpg"])
    source = folder(str(tmp_path), after="b.jpg", upto="b/2.jpg")
    assert names_in(source) == ["b/1.jpg", "b/2.jpg"]
    assert not storage.lists_from_anywhere(str(tmp_path))
    assert not storage.lists_from_anywhere("s3://cells--use1-az4--x-s3/a")
