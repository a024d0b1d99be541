"""The model card: what a bundle is, what it was made of, how far to trust it, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LIMITS = """\
## Use and limits

For research use. It supports a person who decides; it is not a medical device, and no diagnosis
may rest on it.

- It knows the eight classes below and nothing else. A blast, a parasite, a smudge or an artefact is
  given one of them, and often, not always, marked as out of domain.
- The figures hold for cells from the laboratory, microscope and stain it was trained on. Elsewhere
  they fall steeply: models of this kind that reach 97 % at home were measured at 4 to 85 % on other
  laboratories' cells. Check it on labelled cells of your own first.
- Validation images were set apart one by one, not by patient or slide, so the figures are
  optimistic.
- The weights are rounded to float16; every figure was computed with the rounded weights.
"""


def write_card(manifest: Mapping[str, Any]) -> str:
    """Return the model card of a bundle.

    Args:
        manifest: what ``bundle.json`` holds. Facts that it lacks are left out of the card.
    """
    facts = manifest["facts"]
    preprocess = manifest["preprocess"]
    sections = [
        f"# Blood-cell classifier `{manifest['model_name']}`",
        f"Digest `{manifest['digest']}`.",
        f"It takes a picture of one stained blood cell, keeps the centred square of "
        f"{preprocess['crop']:g} times the shorter side, resizes it to {preprocess['size']} px, "
        f"and gives a calibrated probability to each of: {', '.join(manifest['classes'])}.",
        _LIMITS,
        _origin(facts),
        _figures(facts.get("validation"), manifest["calibration"], facts.get("review", {})),
        _confusion(manifest["classes"], manifest["calibration"]["confusion"]),
        _recipe(facts.get("recipe")),
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def _origin(facts: Mapping[str, Any]) -> str:
    lines = ["## Where it comes from", ""]
    data = facts.get("data")
    if isinstance(data, str):  # a bundle made elsewhere may say it in words
        lines.append(f"- Cells: {data}")
    elif data:
        lines.append(f"- Cells: {data['about'] or ', '.join(data['stores'])}.")
        lines.append(
            f"- {data['num_train']:,} images trained it, {data['num_validation']:,} others "
            f"validated and calibrated it. Digest of all their digests: `{data['content_digest']}`."
        )
        lines += [f"- Not used: {n:,} images {why}." for why, n in data["left_out"].items()]
    if pretraining := facts.get("pretraining"):
        lines.append(f"- Weights to start from: {pretraining}.")
    if software := facts.get("software"):
        lines.append("- Made with " + ", ".join(f"{k} {v}" for k, v in software.items()) + ".")
    return "\n".join(lines) if len(lines) > 2 else ""


def _figures(
    figures: Mapping[str, Any] | None, calibration: Mapping[str, Any], review: Mapping[str, Any]
) -> str:
    if figures is None:
        return ""
    value, low, high = figures["accuracy"]
    lines = [
        f"## Figures on {figures['num_images']:,} validation images",
        "",
        f"- Accuracy {value:.4f} (95 % interval {low:.4f} to {high:.4f}), macro-F1 "
        f"{figures['macro_f1']:.4f}.",
        f"- Temperature {calibration['temperature']:.4f}, expected calibration error "
        f"{figures['calibration_error']:.4f}.",
        f"- A person should look at cells of less than {calibration['review_below']:.4f} "
        f"confidence: of the others, at most {100 * review.get('accepted_error', 0):g} % are wrong "
        "(upper bound of a one-sided 95 % interval, from the validation images).",
        "",
        "| class | trained on | validated on | precision | recall |",
        "|---|--:|--:|--:|--:|",
    ]
    for (name, row), trained in zip(
        figures["classes"].items(), calibration["train_counts"], strict=True
    ):
        precision = "–" if row["precision"] is None else f"{row['precision']:.3f}"
        lines.append(
            f"| {name} | {trained:,} | {row['num_images']:,} | {precision} | {row['recall']:.3f} |"
        )
    return "\n".join(lines)


def _confusion(classes: list[str], confusion: list[list[int]]) -> str:
    lines = [
        "## Confusion of the validation images",
        "",
        "| true \\ predicted | " + " | ".join(classes) + " |",
        "|---|" + "--:|" * len(classes),
    ]
    for name, row in zip(classes, confusion, strict=True):
        lines.append(f"| {name} | " + " | ".join(str(count) for count in row) + " |")
    return "\n".join(lines)


def _recipe(recipe: Mapping[str, Any] | None) -> str:
    if recipe is None:
        return ""
    stages = recipe.get("stages", [])
    shared = {name: value for name, value in recipe.items() if name != "stages"}
    lines = [f"| {name} | {_plain(value)} |" for name, value in shared.items()]
    for number, stage in enumerate(stages, start=1):
        lines += [f"| stage {number}: {name} | {value} |" for name, value in stage.items()]
    return "\n".join(["## Recipe", "", "| setting | value |", "|---|---|", *lines])


def _plain(value: object) -> str:
    """Return a setting as text; of nested ones those that have an effect."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items() if inner)
    return str(value)
