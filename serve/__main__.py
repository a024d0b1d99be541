"""``python -m serve``: the whole endpoint on this machine, for one lab or for trying it out."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import threading
from pathlib import Path
from typing import Final

from bloodcells.errors import BloodcellsError
from serve.doors import ROLES, TOKENS_VARIABLE, read_tokens
from serve.settings import Limits, Scale, ServeSettings

DATA: Final = "serve-data"


def main() -> int:
    """Start everything, say where it is, and wait to be interrupted; returns the exit code."""
    flags = _flags()
    token = None
    if not flags.tokens_file and TOKENS_VARIABLE not in os.environ:
        token = secrets.token_urlsafe(24)
        os.environ[TOKENS_VARIABLE] = f"local {','.join(ROLES)} {token}"
    try:
        read_tokens(flags.tokens_file)  # says what is wrong before anything is started
        settings = _settings(flags)
    except BloodcellsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stopped = threading.Event()
    print("starting Ray and the model; this takes about 20 s", flush=True)

    from serve import starting  # Ray takes seconds to import

    try:
        starting.start(settings, port=flags.port, num_cpus=flags.replicas + 2)
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which has handlers of its own
            signal.signal(number, lambda *_: stopped.set())
        if token:
            print(f"token (all roles, shown once): {token}", flush=True)
        print(f"listening on http://127.0.0.1:{flags.port}", flush=True)
        stopped.wait()
        print("stopping", flush=True)
    finally:
        starting.stop()
    return 0


def _flags() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        prog="python -m serve", description="Serve the classifier and its page on this machine."
    )
    parser.add_argument("--port", type=int, default=8000, help="HTTP port on 127.0.0.1")
    parser.add_argument("--bundle", default="", help="URI of the model bundle; else the shipped")
    parser.add_argument("--root", default=DATA, help="folder for archive runs and uploads")
    parser.add_argument(
        "--read", action="append", default=[], help="URI prefix to score archives from; repeatable"
    )
    parser.add_argument(
        "--write", action="append", default=[], help="URI prefix to write runs below; repeatable"
    )
    parser.add_argument("--tokens-file", default="", help="lines 'NAME ROLES TOKEN'")
    parser.add_argument(
        "--replicas", type=int, default=cores, help="most replicas of each kind (default: cores)"
    )
    parser.add_argument(
        "--queued-images", type=int, default=1024, help="most images that wait in a replica"
    )
    return parser.parse_args()


def _settings(flags: argparse.Namespace) -> ServeSettings:
    root = str(Path(flags.root).resolve()) if "://" not in flags.root else flags.root
    return ServeSettings(
        bundle=flags.bundle,
        root=root,
        read=tuple(flags.read),
        write=tuple(flags.write),
        tokens_file=flags.tokens_file,
        secure_cookies=False,  # plain http, loopback alone
        limits=Limits(queued_images=flags.queued_images),
        classify=Scale(min_replicas=flags.replicas, max_replicas=flags.replicas, num_cpus=0.5),
        archives=Scale(min_replicas=0, max_replicas=flags.replicas, num_cpus=0.4),
    )


if __name__ == "__main__":
    sys.exit(main())
