"""Decoding in a process of its own, for a shard that has killed its worker before.

Images are decoded one by one in a child process, which answers after each; when the child dies or
hangs, the first image without an answer is the one that did it. That image gets one more try in a
fresh child, alone, before it counts as ``decoder_crashed``. Knows nothing of Ray.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from bloodcells.errors import ImageError
from bloodcells.imaging import Picture, Preprocess, decode

ISOLATE_FROM: Final = 3
"""The attempt from which a shard is decoded in a process of its own: it has killed two workers."""

TIMEOUT_S: Final = 120.0
"""Longest that one image may take. The largest that is allowed decodes in a few seconds."""


class IsolatedDecoder:
    """Decodes as :func:`bloodcells.imaging.decode` does, and survives an image that kills it."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the child process."""
        self._end()

    def decode_batch(
        self, images: list[bytes | npt.NDArray[np.generic]], preprocess: Preprocess
    ) -> list[Picture | ImageError]:
        """Decode images one by one; faults stand in their place."""
        return [self._picture_or_fault(data, preprocess) for data in images]

    def decode(self, data: bytes | npt.NDArray[np.generic], preprocess: Preprocess) -> Picture:
        """Decode one image.

        Raises:
            ImageError: as ``imaging.decode``; ``decoder_crashed`` if the image ended its process
                twice, the second time in a fresh one.
        """
        how = ""
        for _ in range(2):
            answer, how = self._ask(data, preprocess)
            if isinstance(answer, ImageError):
                raise answer
            if isinstance(answer, Picture):
                return answer
        raise ImageError("decoder_crashed", f"decoding this image {how}, twice")

    def _picture_or_fault(
        self, data: bytes | npt.NDArray[np.generic], preprocess: Preprocess
    ) -> Picture | ImageError:
        try:
            return self.decode(data, preprocess)
        except ImageError as fault:
            return fault

    def _ask(
        self, data: bytes | npt.NDArray[np.generic], preprocess: Preprocess
    ) -> tuple[Any, str]:
        """Send one image to the child; returns its answer, or ``None`` and how the child ended."""
        child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        has_timed_out = threading.Event()

        def stop() -> None:
            has_timed_out.set()
            child.kill()

        watchdog = threading.Timer(self.timeout_s, stop)
        watchdog.start()
        try:
            pickle.dump((data, preprocess), child.stdin)
            child.stdin.flush()
            return pickle.load(child.stdout), ""
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            code = child.wait()
            self._end()
            if has_timed_out.is_set():
                return None, f"took longer than {self.timeout_s:.0f} s"
            return None, f"ended the decoding process (exit status {code})"
        finally:
            watchdog.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bloodcells.isolated"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        for stream in (child.stdin, child.stdout):
            try:
                if stream is not None:
                    stream.close()
            except BrokenPipeError:
                pass  # unsent bytes for a child that is gone
        child.kill()
        child.wait()


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until the parent closes the pipe, which its death does as well."""
    for data, preprocess in _requests(requests):
        try:
            answer: Picture | ImageError = decode(data, preprocess)
        except ImageError as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


def _requests(stream: IO[bytes]) -> Iterator[tuple[Any, Preprocess]]:
    while True:
        try:
            yield pickle.load(stream)
        except EOFError:
            return


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
