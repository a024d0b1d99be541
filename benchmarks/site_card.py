"""Puts what ``benchmarks.sites`` measured into a bundle, whose card and runs then tell it.

``python -m benchmarks.site_card --bundle BUNDLE --out BUNDLE2`` reads ``results/sites.json``, and
``results/sites-look-3.json`` for the development labs, which may be looked at three times only:
its weights are those of the bundle that ships before a fifth of the first ones was recalled, and
its profile moved no early layers.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.sites import unmeasured_digest
from bloodcells.bundle import ModelBundle, shipped_bundle_uri

RESULTS = Path("benchmarks/results")
LABS = {
    "bccd": "BCCD, 348 cells of 4 types, no labels",
    "chula": "Chula, 510 cells of 5 types, no labels",
}
STRANGERS = {
    "photographs": "photographs",
    "texture": "textures",
    "noise": "noise",
    "empty": "empty fields",
    "red_cells": "red cells",
    "field_red_cells": "red against white cells of another lab (BCCD)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", default=shipped_bundle_uri())
    parser.add_argument("--out", required=True, help="folder of the bundle with its figures")
    parser.add_argument("--json", type=Path, default=RESULTS / "sites.json")
    parser.add_argument("--look", type=Path, default=RESULTS / "sites-look-3.json")
    options = parser.parse_args()
    bundle = ModelBundle.load(options.bundle)
    sites = json.loads(options.json.read_text())
    if sites["unmeasured_digest"] != unmeasured_digest(bundle):
        parser.error(
            f"{options.json} is of another bundle than {options.bundle}: measure this one first "
            "with python -m benchmarks.sites --bundle"
        )
    rows = measured(sites, json.loads(options.look.read_text()))
    found = replace(bundle, facts={**bundle.facts, "measured": rows})
    found.save(options.out)
    for row in rows:
        print(*row.values(), sep=" · ")
    print(f"bundle {found.digest} is in {options.out}")


def measured(sites: dict[str, Any], look: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a bundle's ``measured`` (see ``BundleFacts``)."""
    rows = [
        _row(
            "archives of 100 pictures, home and elsewhere",
            "AUC of the alarm",
            sites["alarm"]["auc"],
        )
    ]
    for kind, what in STRANGERS.items():
        rows.append(_row(what, "AUC of out_of_domain", sites["strangers"][kind]))
    note = " (by earlier weights, and a profile that left early layers as they are)"
    for name, what in LABS.items():
        figure = look["labs"][name]["auto"]["balanced_accuracy"]
        rows.append(_row(what + note, "balanced accuracy, among eight types", *figure))
    for name, what in LABS.items():
        few = sites["few"][name]
        rows.append(
            _row(
                f"{what.removesuffix(', no labels')}, adapted to ten labels a class, mean of "
                f"{len(few['draws'])} draws",
                "balanced accuracy of the others, among eight types",
                few["mean"],
            )
        )
    rows.append(
        _row(
            "cell types left out of shorter trainings, mean of eight",
            "AUC of out_of_domain",
            sites["unknown"]["mean"],
        )
    )
    return rows


def _row(
    what: str, figure: str, value: float, low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    row: dict[str, Any] = {"what": what, "figure": figure, "value": round(value, 4)}
    if low is not None and high is not None:
        row |= {"low": round(low, 4), "high": round(high, 4)}
    return row


if __name__ == "__main__":
    main()
