"""The model card: what a bundle is, what it was made of, how far to trust it, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bloodcells.evaluation import error_free

_LIMITS = """\
## Use and limits

For research use. It supports a person who decides; it is not a medical device, and no diagnosis
may rest on it.

- It knows the eight classes below and nothing else. A blast, a parasite, a smudge or an artefact is
  given one of them, and often, not always, marked as out of domain.
- The figures hold for cells from the laboratory, microscope and stain it was trained on. Elsewhere
  they fall steeply: models of this kind that reach 97 % at home were measured at 4 to 85 % on other
  laboratories' cells. Check it on labelled cells of your own first.
- {validation}
- The weights are rounded to float16; every figure was computed with the rounded weights.
"""

_ONE_BY_ONE = """\
Validation images were set apart one by one, not by patient or slide, so the figures are
  optimistic."""

_FEW = """\
It was adapted with few cells and tried on the same ones by cross-validation, so the figures are
  rough: mind their intervals."""


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
        _elsewhere(manifest),
        _LIMITS.format(validation=_FEW if "adapted" in facts else _ONE_BY_ONE),
        _origin(facts),
        _adapted(facts.get("adapted")),
        _figures(facts.get("validation"), manifest["calibration"]),
        _review(facts.get("review"), manifest["calibration"]),
        _measured(facts.get("measured", ())),
        _confusion(manifest["classes"], manifest["calibration"]["confusion"]),
        _recipe(facts.get("recipe")),
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def _elsewhere(manifest: Mapping[str, Any]) -> str:
    if "elsewhere" not in manifest:
        return ""
    return (
        f"Pictures that come from another laboratory are seen by another network, which has a card "
        f"of its own, in `elsewhere/`: digest `{manifest['elsewhere']}`."
    )


def _origin(facts: Mapping[str, Any]) -> str:
    lines = ["## Where it comes from", ""]
    data = facts.get("data")
    if isinstance(data, str):  # a bundle made elsewhere may say it in words
        lines.append(f"- Cells: {data}")
    elif data:
        lines.append(f"- Cells: {data['about'] or ', '.join(data['stores'])}.")
        both = "the same" if "adapted" in facts else f"{data['num_validation']:,} others"
        lines.append(
            f"- {data['num_train']:,} images trained it, {both} validated and calibrated it. "
            f"Digest of all their digests: `{data['content_digest']}`."
        )
        lines += [f"- Not used: {n:,} images {why}." for why, n in data["left_out"].items()]
    if pretraining := facts.get("pretraining"):
        lines.append(f"- Weights to start from: {pretraining}.")
    if software := facts.get("software"):
        lines.append("- Made with " + ", ".join(f"{k} {v}" for k, v in software.items()) + ".")
    return "\n".join(lines) if len(lines) > 2 else ""


def not_kept_apart(classes: Sequence[str]) -> str:
    """Say of which classes an adapted bundle's figures promise less than of the others."""
    return (
        f"Cells of {', '.join(classes)} on a slide that is all there is of a class were predicted "
        "by networks that had learned from other cells of that slide: other slides may fare worse"
    )


def _adapted(adapted: Mapping[str, Any] | None) -> str:
    """Return how a bundle was adapted to another lab, and what it is worth there."""
    if adapted is None:
        return ""
    cells, before, after = adapted["cells"], adapted["before"], adapted["after"]
    kinds = ", ".join(f"{number:,} {name}" for name, number in cells.items())
    # Bundles that were adapted before there were two networks say nothing of it.
    is_other = adapted.get("network") == "elsewhere"
    network = ", its network for other laboratories" if is_other else ""
    lines = [
        "## Adapted to another laboratory",
        "",
        f"- From the bundle `{adapted['from']}`{network}, with {sum(cells.values()):,} labelled "
        f"cells of {adapted['slides']:,} slide{'' if adapted['slides'] == 1 else 's'}: {kinds}.",
        f"- Measured by {adapted['measured']}. Intervals are of 95 %, by "
        f"{adapted['intervals_by']}. *Before* is the bundle that it came from, on the same cells, "
        "with its own crop or the one that was found, and its network for other laboratories if it "
        "has one, whichever is best.",
    ]
    if near := adapted["classes_not_kept_apart"]:
        lines.append(f"- {not_kept_apart(near)}.")
    lines += ["", "| figure | before | after |", "|---|--:|--:|"]
    for name, text in (("accuracy", "accuracy"), ("balanced_accuracy", "balanced accuracy")):
        lines.append(f"| {text} | {_interval(before[name])} | {_interval(after[name])} |")
    for name in after["recall"]:
        one, two = _interval(before["recall"][name]), _interval(after["recall"][name])
        lines.append(f"| recall of {name} | {one} | {two} |")
    return "\n".join(lines)


def _interval(figure: list[float]) -> str:
    value, low, high = figure
    return f"{value:.3f} ({low:.3f}–{high:.3f})"


def _review(review: Mapping[str, Any] | None, calibration: Mapping[str, Any]) -> str:
    if review is None:
        return ""
    accepted, threshold = review["accepted_error"], calibration["review_below"]
    images, where = sum(map(sum, calibration["confusion"])), "validation images"
    if "folds" in review:
        images = review["num_images"]
        where = f"images, each judged by one of {review['folds']} models trained without it"
    if threshold == 1:
        text = (
            f"A person should look at every cell: that at most {100 * accepted:g} % of those that "
            f"nobody looks at are wrong takes {error_free(accepted):,} images without an error to "
            f"be shown, more with errors, and there were {images:,} {where}."
        )
    elif "folds" in review:
        text = (
            f"A person should look at cells of less than {threshold:.4f} confidence. Of {images:,} "
            f"{where}, the {review['num_kept']:,} that these were surest of hold "
            f"{review['num_wrong']:,} errors: with 95 % confidence (one-sided) at most "
            f"{100 * accepted:g} %. This model leaves no larger share of its validation images to "
            "itself."
        )
    else:
        text = (
            f"A person should look at cells of less than {threshold:.4f} confidence: of the "
            f"others, at most {100 * accepted:g} % are wrong (upper bound of a one-sided 95 % "
            f"interval, from {images:,} {where})."
        )
    if note := review.get("note"):
        text += f" {note}"
    return f"## Review\n\n{text}"


def _measured(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    lines = ["## With other pictures", "", "| pictures | figure | value |", "|---|---|--:|"]
    for row in rows:
        low, high = row.get("low"), row.get("high")
        interval = "" if low is None else f" ({low:.3f}–{high:.3f})"
        lines.append(f"| {row['what']} | {row['figure']} | {row['value']:.3f}{interval} |")
    return "\n".join(lines)


def _figures(figures: Mapping[str, Any] | None, calibration: Mapping[str, Any]) -> str:
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
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)
