"""The eight cell types: their order, names, aliases and colours. Knows nothing of images."""

from __future__ import annotations

from typing import Final

CLASSES: Final[tuple[str, ...]] = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature_granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
"""Class names in the one order that every probability vector of this project has."""

WHITE_CELLS: Final[tuple[str, ...]] = tuple(
    name for name in CLASSES if name not in ("erythroblast", "platelet")
)
"""The classes of the white-cell differential; erythroblasts and platelets are reported apart."""

ALIASES: Final[dict[str, str]] = {
    "ig": "immature_granulocyte",
    "immature granulocyte": "immature_granulocyte",
    "mmy": "immature_granulocyte",
    "my": "immature_granulocyte",
    "pmy": "immature_granulocyte",
    "bne": "neutrophil",
    "sne": "neutrophil",
}
"""Other names of the classes, lower case (metamyelocyte, myelocyte, promyelocyte; band and
segmented neutrophil). Source: Acevedo et al. 2020, Data in Brief 30:105474."""

COLOURS: Final[dict[str, str]] = {
    "basophil": "#4e3a8c",
    "eosinophil": "#d1495b",
    "erythroblast": "#8c2f39",
    "immature_granulocyte": "#e09f3e",
    "lymphocyte": "#2e86ab",
    "monocyte": "#5b8e7d",
    "neutrophil": "#9c89b8",
    "platelet": "#8d99ae",
}
"""One colour a class for every plot, as ``#rrggbb``."""


SHORT_NAMES: Final[dict[str, str]] = {
    "basophil": "BAS",
    "eosinophil": "EOS",
    "erythroblast": "ERB",
    "immature_granulocyte": "IG",
    "lymphocyte": "LYM",
    "monocyte": "MON",
    "neutrophil": "NEU",
    "platelet": "PLT",
}
"""What a class is called where there is no room for its name."""


def class_of(name: str) -> str | None:
    """Return the class that a folder or label name stands for, or ``None`` if it stands for none.

    Case, surrounding space, ``-`` for ``_`` and a plural ``s`` do not matter; aliases count.
    """
    key = name.strip().lower().replace("-", "_")
    for candidate in (key, key.removesuffix("s")):
        if candidate in CLASSES:
            return candidate
        alias = ALIASES.get(candidate) or ALIASES.get(candidate.replace("_", " "))
        if alias is not None:
            return alias
    return None
