"""How long a listing takes when each page of it takes its time, by one task and shared by several.

A server of its own lists made-up keys of one flat folder, in order and from any key on, as S3 does;
each answer takes as long as it is told to. The plan is written to disk.

    python -m benchmarks.listing --keys 100000 --page-ms 100
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from bisect import bisect_right
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Final
from urllib.parse import parse_qs, urlsplit

import ray

from bloodcells.accounting import plan_size
from bloodcells.pipeline import planning
from bloodcells.pipeline.cluster import start_ray
from bloodcells.stores import open_store, opening

PAGE: Final = 1000
NEVER: Final = 10**12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--page-ms", type=float, default=100)
    given = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(
        target=serve, args=(there, given.keys, given.page_ms / 1000), daemon=True
    )
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": here.recv(),
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    shared = (opening.MOST_AT_TOP, planning.SHARDS_LISTED_FIRST, planning.SHARDS_LISTED)
    alone = (NEVER, NEVER, NEVER)
    print(f"{given.keys:,} keys, {given.page_ms:g} ms a request, {os.cpu_count()} cores")
    for store in ("s3://cells/folder", "s3://cells"):
        for num_tasks, limits in ((1, alone), (1, shared), (8, shared)):
            opening.MOST_AT_TOP, planning.SHARDS_LISTED_FIRST, planning.SHARDS_LISTED = limits
            seconds, num_answers = measure(store, num_tasks, given.keys)
            how = "in one go" if limits == alone else f"shared, {num_tasks} at once"
            print(f"{store:18} {how:18} {seconds:6.1f} s {num_answers:4} tasks", flush=True)


def measure(store: str, num_tasks: int, num_keys: int) -> tuple[float, int]:
    """Return seconds from the store to its plan on disk, Ray's start apart, and tasks."""
    start_ray(num_tasks)
    ray.get([ray.remote(warm).remote() for _ in range(num_tasks)])
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        counts = list(
            planning.plan_stores(
                folder, open_store(store).sources(), shard_size=1000, slide_pattern=None
            )
        )
        seconds = time.monotonic() - began
        assert plan_size(folder).num_images == num_keys
    ray.shutdown()
    return seconds, len(counts)


def warm() -> None:
    """Have a worker ready, with all it imports; it waits, so that each worker gets one."""
    open_store("s3://cells/folder")
    time.sleep(1)


def serve(told: Connection, num_keys: int, answer_s: float) -> None:
    """List keys; ``cells/folder`` has them all below one folder, ``cells`` in its root as well."""
    names = [f"cell-{number:08d}.jpg" for number in range(num_keys)]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            time.sleep(answer_s)
            asked = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
            prefix = asked.get("prefix", "")
            after = asked.get("continuation-token") or asked.get("start-after", "")
            most = min(int(asked.get("max-keys", PAGE)), PAGE)
            start = bisect_right(names, after[len(prefix) :])
            page = names[start : start + most]
            is_truncated = start + most < num_keys
            rest = f"<NextContinuationToken>{prefix}{page[-1]}</NextContinuationToken>"
            contents = "".join(
                f"<Contents><Key>{prefix}{name}</Key><Size>15000</Size><ETag>e</ETag></Contents>"
                for name in page
            )
            body = (
                "<ListBucketResult>"
                f"<IsTruncated>{str(is_truncated).lower()}</IsTruncated>"
                f"{rest if is_truncated else ''}{contents}</ListBucketResult>"
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.send(f"http://127.0.0.1:{server.server_address[1]}")
    server.serve_forever()


if __name__ == "__main__":
    main()
