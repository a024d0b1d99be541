"""What an image is called: which names are images, the keys, the slide and label of each.

Knows nothing of bytes; a name is data, compared and split at slashes, never opened as a path.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Final

from bloodcells.cells import CLASSES, class_of

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def is_image(name: str) -> bool:
    """Return whether a name is that of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Return whether a path has a hidden part, or one that a Mac leaves (``__MACOSX``, ``._x``)."""
    if name[:1] != "." and "/." not in name and "__MACOSX" not in name:
        return False  # nearly all of millions
    return any(
        part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))
        for part in name.split("/")
    )


def label_from(value: object) -> str | None:
    """Return the class that a label stands for: its name, an alias, or its index in ``CLASSES``."""
    if isinstance(value, str):
        return class_of(value)
    index = index_from(value)
    return CLASSES[index] if index is not None and 0 <= index < len(CLASSES) else None


def index_from(value: object) -> int | None:
    """Return the index that a label is, or ``None``.

    A column with gaps often holds numbers as floats, and NaN in the gaps.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) else None


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The rules by which an image of a store gets its slide and its label.

    Attributes:
        root: the store's root URI; names count from here.
        slide_pattern: searched for in ``image_uri``: its group ``slide``, else its first group,
            else all that it matches is the slide. ``None`` for the rule without a pattern.
    """

    root: str
    slide_pattern: str | None = None

    def below_root(self, uri: str) -> str:
        """Return a URI relative to the root, beginning with the root's own name."""
        return uri[self.root.rfind("/") + 1 :]

    def label_of(self, path: str) -> str | None:
        """Return the class after which the nearest folder of a path (see `below_root`) is named."""
        return _label_of_folder(path.rpartition("/")[0])

    def slide_of(self, image_uri: str, otherwise: str) -> str:
        """Return the slide by the pattern, or ``otherwise`` where it does not match."""
        return self._by_pattern(image_uri) or otherwise

    def slide_of_file(self, image_uri: str) -> str:
        """Return the slide of an image that is a file: by the pattern, or after its folder.

        A folder's id is its path below the store's root; the root itself goes by its own name. A
        folder that is named after a class stands for the one that it lies in.
        """
        return self._by_pattern(image_uri) or _slide_of_folder(
            self.root, image_uri.rpartition("/")[0]
        )

    def _by_pattern(self, image_uri: str) -> str | None:
        if self.slide_pattern is None:
            return None
        match = re.search(self.slide_pattern, image_uri)
        if match is None:
            return None
        if "slide" in match.re.groupindex:
            return match["slide"]
        return match[1] if match.re.groups else match[0]


class UniqueNames:
    """Gives each member of an archive its own name, though archives may repeat one."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def of(self, name: str, offset: int) -> str:
        """Return ``name`` where it is new, else ``name@offset``."""
        while name in self._seen:  # more than once where that is some member's name, too
            name = f"{name}@{offset}"
        self._seen.add(name)
        return name


@functools.lru_cache(maxsize=4096)
def _label_of_folder(folder: str) -> str | None:
    classes = (class_of(part) for part in reversed(folder.split("/")))
    return next((name for name in classes if name is not None), None)


@functools.lru_cache(maxsize=4096)
def _slide_of_folder(root: str, folder: str) -> str:
    if class_of(folder.rpartition("/")[2]) is not None:
        folder = folder.rpartition("/")[0]
    if folder.startswith(f"{root.rstrip('/')}/"):
        return folder[len(root.rstrip("/")) + 1 :]
    return folder.rpartition("/")[2] or folder
