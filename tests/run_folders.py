"""Run folders as a scoring leaves them, with pictures, hostile names and made-up scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from bloodcells import publish
from bloodcells.cells import CLASSES, COLOURS, WHITE_CELLS
from bloodcells.records import (
    QUARANTINE_SCHEMA,
    SCORES_SCHEMA,
    SLIDES_SCHEMA,
    Member,
    Shard,
)

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e'\"&"
"""A slide's name as an attacker would choose it: markup, a terminal escape, turned writing."""


def make_run(
    root: Path,
    *,
    slides: Sequence[str] = ("slide-a", "slide-b"),
    images_a_slide: int = 40,
    labelled: bool = True,
    unfinished: int = 0,
    aliens: int = 0,
    with_images: bool = True,
    **record: Any,
) -> Path:
    """Write a run folder with one shard a slide, and the images that it scored.

    The last image of every slide is quarantined; the last ``unfinished`` shards have no score file;
    the first ``aliens`` images of every slide are out of domain.
    """
    rng = np.random.default_rng(7)
    run, store = root / "run", root / "store"
    store.mkdir(parents=True)
    shards, rows = [], []
    for number, slide in enumerate(slides):
        members = [
            _member(store, f"{number:03d}-{i:03d}.png", slide, rng, with_images)
            for i in range(images_a_slide)
        ]
        shard = Shard.make(str(store), "folder", tuple(members))
        shards.append(shard)
        scores = [_score(shard, m, rng, labelled) for m in members[:-1]]
        for row in scores[:aliens]:
            row |= {"out_of_domain": True, "needs_review": True}
        quarantine = {
            "image_uri": members[-1].image_uri,
            "content_hash": None,
            "slide_id": slide,
            "reason": "undecodable" if number % 2 else "too_large",
            "detail": f"no image in {HOSTILE}",
            "shard_id": shard.shard_id,
        }
        publish.publish_shard(
            str(run),
            shard.shard_id,
            pa.Table.from_pylist(scores, SCORES_SCHEMA),
            pa.Table.from_pylist([quarantine], QUARANTINE_SCHEMA),
        )
        if number >= len(slides) - unfinished:
            publish.withdraw_shard(str(run), shard.shard_id)
        rows.append(_slide(slide, scores))
    (run / "plan").mkdir()
    (run / "plan" / "part-00000.parquet").write_bytes(publish.plan_bytes(shards))
    pq.write_table(pa.Table.from_pylist(rows, SLIDES_SCHEMA), run / "slides.parquet")
    status = "incomplete" if unfinished else "complete"
    (run / "run.json").write_text(json.dumps({"status": status, **record}))
    return run


def _member(
    store: Path, name: str, slide: str, rng: np.random.Generator, with_image: bool
) -> Member:
    label = CLASSES[int(rng.choice(8, p=[0.03, 0.06, 0.05, 0.06, 0.3, 0.1, 0.3, 0.1]))]
    path = store / name
    if with_image:
        picture = Image.new("RGB", (120, 120), "#f3e6d8")
        left, top = (int(v) for v in rng.integers(20, 50, 2))
        ImageDraw.Draw(picture).ellipse((left, top, left + 55, top + 50), fill=COLOURS[label])
        picture.save(path)
    return Member(
        image_uri=str(path), name=name, offset=0, size=0, tag="", slide_id=slide, label=label
    )


def _score(
    shard: Shard, member: Member, rng: np.random.Generator, labelled: bool
) -> dict[str, Any]:
    logits = rng.normal(0, 1, 8)
    logits[CLASSES.index(str(member.label))] += rng.choice([9.0, 3.0], p=[0.8, 0.2])
    probabilities = np.exp(logits) / np.exp(logits).sum()
    best = int(probabilities.argmax())
    return {
        "image_uri": member.image_uri,
        "content_hash": hashlib.sha256(member.name.encode()).hexdigest(),
        "slide_id": member.slide_id,
        "predicted_class": CLASSES[best],
        "confidence": probabilities[best],
        **{f"prob_{name}": p for name, p in zip(CLASSES, probabilities, strict=True)},
        "out_of_domain": False,
        "needs_review": bool(probabilities[best] < 0.7),
        "label": member.label if labelled else None,
        "width_px": 120,
        "height_px": 120,
        "shard_id": shard.shard_id,
        "bundle_digest": "sha256:0",
        "site_digest": None,
        "precision": "float32",
    }


def _slide(slide: str, scores: list[dict[str, Any]]) -> dict[str, Any]:
    given = [row["predicted_class"] for row in scores]
    counts = {name: given.count(name) for name in CLASSES}
    white = sum(counts[name] for name in WHITE_CELLS)
    figures: dict[str, Any] = {}
    for name, count in counts.items():
        percent = 100 * count / white if white else None
        spread = 196 * (count + 1) ** 0.5 / white if white else 0.0
        figures |= {
            f"count_{name}": count,
            f"percent_{name}": percent,
            f"estimate_{name}": percent,
            f"low_{name}": None if percent is None else max(percent - spread, 0.0),
            f"high_{name}": None if percent is None else percent + spread,
        }
    return {
        "slide_id": slide,
        "num_images": len(scores) + 1,
        "num_scored": len(scores),
        "num_quarantined": 1,
        "num_out_of_domain": sum(row["out_of_domain"] for row in scores),
        "num_review": sum(row["needs_review"] for row in scores),
        **figures,
        "erythroblasts_per_100_wbc": figures["percent_erythroblast"],
        "mean_confidence": float(np.mean([row["confidence"] for row in scores]))
        if scores
        else None,
    }
