"""Storage on a disk and on a real S3 server: what is put, listed, read by range and deleted."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bloodcells import storage
from bloodcells.errors import (
    ConfigurationError,
    NotFoundError,
    StorageError,
)
from bloodcells.storage import s3
from tests.s3 import S3Server, credentials, faulty_proxy

AWKWARD_NAMES = ("ünïcode.bin", "sp ace+plus%41.bin", "<b>&amp;\x1b[31m.bin", "q?versionId=1#f.bin")


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "root")
    server: S3Server = request.getfixturevalue("s3")
    return f"{server.uri}/{request.node.name}"


def test_what_is_put_is_there(root: str) -> None:
    uri = storage.join(root, "folder/", "file.bin")
    assert not storage.exists(uri)
    storage.put(uri, b"first")
    storage.put(uri, b"second")
    assert storage.read(uri) == b"second"
    entry = storage.stat(uri)
    assert (entry.uri, entry.name, entry.size, entry.is_folder) == (uri, "file.bin", 6, False)
    assert storage.stat(storage.join(root, "folder")).is_folder
    assert storage.exists(root)


@pytest.mark.parametrize("size", [0, 1000, 11 * 2**20])
def test_a_file_is_moved_whole(
    root: str, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 * 2**20)  # the least that S3 takes: three parts
    uri, path = storage.join(root, "folder", "file.bin"), tmp_path / "finished"
    data = os.urandom(size)
    for _ in range(2):
        path.write_bytes(data)
        storage.put_file(uri, path)
        assert storage.read(uri) == data
        assert not path.exists()
    assert [entry.name for entry in storage.listdir(storage.join(root, "folder"))] == ["file.bin"]


def test_a_file_from_another_mount_is_copied(tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"bloodcells-{os.getpid()}"
    if not other.parent.is_dir() or other.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other mount here")
    other.write_bytes(b"data")
    storage.put_file(str(tmp_path / "a" / "file.bin"), other)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file.bin"]
    assert (tmp_path / "a" / "file.bin").read_bytes() == b"data"
    assert not other.exists()


def test_a_tag_changes_with_the_content(root: str) -> None:
    uri = storage.join(root, "file.bin")
    storage.put(uri, b"one")
    first = storage.stat(uri).tag
    assert storage.stat(uri).tag == first
    time.sleep(0.01)
    storage.put(uri, b"two")
    assert storage.stat(uri).tag != first


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_ranges_end_where_the_file_ends(root: str, size: int) -> None:
    uri, data = storage.join(root, "file.bin"), bytes(range(256)) * 4
    storage.put(uri, data[:size])
    for offset, length in ((0, 10), (0, 2000), (5, 0), (990, 100), (1000, 5), (5000, 5), (0, 0)):
        assert storage.read_range(uri, offset, length) == data[:size][offset : offset + length]
    assert storage.read(uri) == data[:size]


def test_listings_are_in_the_order_of_keys(root: str) -> None:
    names = ["b.bin", "a/z.bin", "a.bin", "a/b/c.bin", "a-b.bin", "ab/x.bin", "é.bin"]
    for name in names:
        storage.put(storage.join(root, name), name.encode())
    walked = [entry.uri.removeprefix(f"{root}/") for entry in storage.walk(root)]
    assert walked == sorted(names, key=str.encode)
    listed = [(entry.name, entry.is_folder) for entry in storage.listdir(root)]
    assert listed == [
        ("a-b.bin", False),
        ("a.bin", False),
        ("a", True),
        ("ab", True),
        ("b.bin", False),
        ("é.bin", False),
    ]


def test_awkward_names_are_taken_verbatim(root: str) -> None:
    for name in AWKWARD_NAMES:
        storage.put(f"{root}/{name}", name.encode())
    assert {entry.name for entry in storage.listdir(root)} == set(AWKWARD_NAMES)
    for entry in storage.walk(root):
        assert storage.read(entry.uri) == entry.name.encode()
        assert storage.stat(entry.uri).size == len(entry.name.encode())
    storage.delete(root, recursive=True)
    for name in AWKWARD_NAMES:
        assert not storage.exists(f"{root}/{name}")


def test_what_is_not_there_is_named(root: str) -> None:
    storage.put(storage.join(root, "file.bin"), b"x")
    missing = storage.join(root, "missing")
    for attempt in (
        lambda: storage.stat(missing),
        lambda: storage.read(missing),
        lambda: storage.read_range(missing, 0, 5),
        lambda: list(storage.listdir(missing)),
        lambda: list(storage.walk(missing)),
        lambda: storage.open_read(missing).__enter__(),
    ):
        with pytest.raises(NotFoundError, match="missing"):
            attempt()


def test_deleting_twice_is_no_error(root: str) -> None:
    uri = storage.join(root, "folder", "file.bin")
    for number in range(30):
        storage.put(storage.join(root, "folder", "more", str(number)), b"x")
    storage.put(uri, b"x")
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)
    for _ in range(2):
        storage.delete(storage.join(root, "folder"), recursive=True)
    with pytest.raises(NotFoundError):
        storage.read(storage.join(root, "folder", "more", "7"))


def test_an_open_file_can_be_sought(root: str) -> None:
    uri, data = storage.join(root, "file.bin"), os.urandom(300_000)
    storage.put(uri, data)
    with storage.open_read(uri) as file:
        assert file.read(10) == data[:10]
        assert file.seek(-20, os.SEEK_END) == len(data) - 20
        assert file.read() == data[-20:]
        assert file.read(1) == b""
        file.seek(100_000)
        assert file.read(150_000) == data[100_000:250_000]
        file.seek(5)
        assert file.read(3) == data[5:8]
        file.seek(400_000)
        assert file.read(3) == b""


def test_one_of_many_creates(root: str) -> None:
    uri = storage.join(root, "lease")
    assert storage.put_if_absent(uri, b"mine")
    assert not storage.put_if_absent(uri, b"yours")
    assert storage.read(uri) == b"mine"


def test_one_of_many_threads_creates_on_disk(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease")
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return storage.put_if_absent(uri, str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))
    assert sum(created) == 1
    assert storage.read(uri) == str(created.index(True)).encode()
    assert [path.name for path in tmp_path.iterdir()] == ["lease"]


def test_one_of_many_threads_creates_where_the_server_knows_conditions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in credentials(f"http://{host}:{port}").items():
            monkeypatch.setenv(name, value)
        import boto3

        boto3.client("s3").create_bucket(Bucket="bucket")
        with ThreadPoolExecutor(8) as pool:
            created = list(
                pool.map(
                    lambda number: storage.put_if_absent("s3://bucket/lease", b"%d" % number),
                    range(8),
                )
            )
        assert sum(created) == 1
        assert storage.read("s3://bucket/lease") == b"%d" % created.index(True)
    finally:
        server.stop()


def test_pages_of_a_listing_are_followed(s3: S3Server) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: storage.put(f"{s3.uri}/pages/{n:05d}.bin", b""), range(1100)))
    names = [entry.name for entry in storage.walk(f"{s3.uri}/pages")]
    assert names == [f"{number:05d}.bin" for number in range(1100)]
    assert sum(1 for _ in storage.listdir(f"{s3.uri}/pages")) == 1100


def test_uris_have_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    real = str(tmp_path.resolve() / "real")
    for spelling in ("real", "./real/", "link", "x/../real", real, f"file://{real}"):
        assert storage.normalise(spelling) == real
    assert storage.normalise(f"{(tmp_path / 'a b').as_uri()}") == str(tmp_path.resolve() / "a b")
    assert storage.normalise("s3://bucket/key/") == "s3://bucket/key"
    assert storage.normalise("s3://bucket") == "s3://bucket"
    assert storage.name_of("s3://bucket/a/b.tar") == "b.tar"
    assert storage.join("s3://bucket/a/", "b", "c") == "s3://bucket/a/b/c"
    for wrong in ("", "s3://", "gs://bucket/x", "http://host/x"):
        with pytest.raises(ConfigurationError):
            storage.normalise(wrong)


def test_links_are_listed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file.bin").write_bytes(b"x")
    (tmp_path / "folder" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = [(entry.name, entry.is_link) for entry in storage.walk(str(tmp_path))]
    assert found == [("broken", True), ("file.bin", False), ("loop", True)]


def test_names_that_are_no_text_can_be_read(tmp_path: Path) -> None:
    raw = os.fsencode(str(tmp_path)) + b"/caf\xe9.bin"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (entry,) = storage.walk(str(tmp_path))
    assert entry.name == "caf\\xe9.bin"
    assert storage.read(entry.uri) == b"x"


def test_a_claimed_length_is_not_allocated(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"x" * 10)
    assert storage.read_range(str(tmp_path / "file.bin"), 5, 2**60) == b"x" * 5


def test_a_folder_is_not_a_file(root: str) -> None:
    storage.put(storage.join(root, "folder", "file.bin"), b"x")
    with pytest.raises(StorageError, match="folder"), storage.open_read(f"{root}/folder"):
        pass


def test_a_folder_needs_recursive_to_go(tmp_path: Path) -> None:
    storage.put(str(tmp_path / "folder" / "file.bin"), b"x")
    with pytest.raises(StorageError, match="recursive"):
        storage.delete(str(tmp_path / "folder"))


def test_bytes_are_counted(root: str) -> None:
    uri = storage.join(root, "file.bin")
    storage.put(uri, bytes(1000))
    before = storage.bytes_read()
    storage.read(uri)
    storage.read_range(uri, 100, 50)
    with storage.open_read(uri) as file:
        file.read()
    assert storage.bytes_read() - before == 2050


def test_reading_ahead_adapts(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, size = f"{s3.uri}/ahead.bin", 20 * 2**20
    storage.put(uri, bytes(size))
    with faulty_proxy(s3) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with storage.open_read(uri) as file:
            for offset in range(0, size, 15_000):
                file.seek(offset)
                file.read(512)
        assert len(faults.seen) < 15  # small steps: few large requests
        faults.seen.clear()
        before = storage.bytes_read()
        with storage.open_read(uri) as file:
            for offset in range(0, size, 4 * 2**20):
                file.seek(offset)
                file.read(512)
        assert len(faults.seen) <= 6
        assert storage.bytes_read() - before < 2**20  # great leaps: small requests


def _read_in_child(uri: str) -> bytes:
    return storage.read(uri)


def test_a_forked_process_has_its_own_client(s3: S3Server) -> None:
    storage.put(f"{s3.uri}/fork.bin", b"x")
    assert storage.read(f"{s3.uri}/fork.bin") == b"x"
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(_read_in_child, [f"{s3.uri}/fork.bin"] * 4) == [b"x"] * 4


def test_a_folder_that_is_written_into_meanwhile_is_removed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scores"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}").touch()
    unlink, vanished = os.unlink, []

    def vanishing(path: str, **more: Any) -> None:
        if not vanished:  # a worker renames a file that was just listed
            vanished.append(path)
            raise FileNotFoundError(path)
        unlink(path, **more)

    monkeypatch.setattr(os, "unlink", vanishing)
    storage.delete(str(folder), recursive=True)
    assert vanished
    assert not folder.exists()
