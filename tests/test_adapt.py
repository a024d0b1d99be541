"""Adapting to another lab: it learns, measures itself without its own cells, and refuses harm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bloodcells.augment import mix
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.detector import Detector
from bloodcells.errors import (
    BundleError,
    ConfigurationError,
)
from bloodcells.model_card import not_kept_apart, write_card
from bloodcells.models.early_norm import statistics_at, statistics_of
from bloodcells.scoring import Scorer
from bloodcells.sites import HomeReference, measure_all
from bloodcells.training.adapting import Adaptation, adapt, begun_with, fit_to_cells, table_of
from bloodcells.training.adapting_fit import (
    Cells,
    Fitting,
    all_decoded,
    fit_network,
    seen_by,
    settled,
)
from bloodcells.training.adapting_folds import folds_of
from bloodcells.training.adapting_view import SiteViews
from bloodcells.verdicts import judge
from jobs.adapt import AdaptConfig, main, warnings_of
from tests import tiny_bundle
from tests.labelled_cells import KINDS, png, write_store

QUICK = Fitting(views=2, steps=0)


@pytest.fixture(scope="module")
def untrained() -> ModelBundle:
    return tiny_bundle.untrained()


@pytest.fixture(scope="module")
def drawn() -> tuple[list[bytes], np.ndarray, list[str]]:
    """Cells of three classes from four slides: images, labels, groups."""
    images = [png(kind, seed) for kind in KINDS for seed in range(8)]
    labels = np.array([CLASSES.index(kind) for kind in KINDS for _ in range(8)])
    return images, labels, [f"slide-{seed % 4}" for _ in KINDS for seed in range(8)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def adapted(untrained: ModelBundle, drawn: tuple[list[bytes], np.ndarray, list[str]]) -> Adaptation:
    return adapt(untrained, *drawn, fitting=QUICK)


def test_it_learns_and_says_what_it_is_worth(adapted: Adaptation) -> None:
    before, after = adapted.before.evaluation, adapted.after.evaluation
    assert after.balanced_accuracy > before.balanced_accuracy
    assert not adapted.is_worse
    adapted.require_no_worse()
    facts = adapted.bundle.facts["adapted"]
    assert facts["cells"] == dict.fromkeys(KINDS, 8)
    assert facts["slides"] == 4
    value, low, high = facts["after"]["balanced_accuracy"]
    assert low <= value <= high
    assert value == pytest.approx(after.balanced_accuracy, abs=1e-4)


def test_the_new_bundle_is_calibrated_on_cells_it_did_not_learn_from(adapted: Adaptation) -> None:
    calibration = adapted.bundle.calibration
    assert (calibration.confusion == adapted.after.evaluation.confusion).all()
    assert calibration.train_counts.sum() == calibration.confusion.sum() == 24
    assert adapted.bundle.home is not None
    assert adapted.bundle.home.num_images == 24


def test_the_new_bundle_can_be_kept(adapted: Adaptation, tmp_path: Path) -> None:
    adapted.bundle.save(str(tmp_path / "bundle"))
    assert ModelBundle.load(str(tmp_path / "bundle")).digest == adapted.bundle.digest
    assert "labelled cells" in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()


def test_the_card_says_how_it_was_adapted(adapted: Adaptation) -> None:
    card = write_card(adapted.bundle.manifest())
    assert adapted.bundle.facts["adapted"]["from"] in card
    assert "24 labelled cells of 4 slides: 8 eosinophil, 8 lymphocyte, 8 neutrophil." in card
    assert "Measured by cross-validation, cells predicted without the cells of their" in card
    value, low, high = adapted.after.intervals.figures["balanced_accuracy"]
    assert f"| {value:.3f} ({low:.3f}–{high:.3f}) |" in card
    for kind in KINDS:
        assert f"| recall of {kind} |" in card
    assert "24 images trained it, the same validated and calibrated it" in card
    assert "set apart one by one" not in card
    assert "Adapted" not in write_card(replace(adapted.bundle, facts={}).manifest())


def test_an_adapted_bundle_sends_every_cell_to_review_and_says_so(adapted: Adaptation) -> None:
    assert adapted.bundle.calibration.review_below == 1
    card = write_card(adapted.bundle.manifest())
    assert "A person should look at every cell" in card
    assert "takes 598 images without an error" in card
    assert "and there were 24 validation images." in card
    (warning,) = [w for w in warnings_of(adapted, from_reviews=False) if "every cell" in w]
    assert "598 labelled cells without an error" in warning
    few = replace(adapted.bundle.calibration, review_below=0.9)
    enough = replace(adapted, bundle=replace(adapted.bundle, calibration=few))
    assert not [w for w in warnings_of(enough, from_reviews=False) if "every cell" in w]
    assert "less than 0.9000 confidence" in write_card(enough.bundle.manifest())


def test_its_own_lab_is_not_strange_to_it(
    drawn: tuple[list[bytes], np.ndarray, list[str]],
) -> None:
    given = ModelBundle.load(shipped_bundle_uri())
    small = replace(given.preprocess, size=96)  # as fast again
    given = replace(given, preprocess=small, elsewhere=None)
    blank = np.zeros((1, 96, 96, 3), np.uint8)
    features, _ = seen_by(given.build().eval(), blank)
    knows_nothing = Detector.of(features, np.zeros(1, np.int64))
    calibration = replace(given.calibration, novel_above=-1e9)  # all that is not its own is new
    given = replace(given, calibration=calibration)
    bundle = adapt(replace(given, detector=knows_nothing), *drawn, fitting=QUICK).bundle
    fresh = [png(kind, seed) for kind in KINDS for seed in range(100, 120)]
    outputs = Scorer(bundle, device="cpu").outputs(all_decoded(fresh, bundle.preprocess))
    assert judge(outputs, bundle.calibration).out_of_domain.mean() <= 0.08
    noise = np.random.default_rng(0).integers(0, 256, (20, 96, 96, 3)).astype(np.uint8)
    outputs = Scorer(bundle, device="cpu").outputs(noise)
    assert judge(outputs, bundle.calibration).out_of_domain.all()


def test_where_all_classes_are_labelled_the_card_has_figures(
    untrained: ModelBundle, tmp_path: Path
) -> None:
    images = [png(kind, seed) for kind in CLASSES for seed in range(4)]
    labels = np.repeat(np.arange(8), 4)
    made = adapt(untrained, images, labels, [f"s{i}" for i in range(32)], fitting=QUICK).bundle
    made.save(str(tmp_path / "bundle"))
    assert "Figures on 32 validation" in (tmp_path / "bundle" / "MODEL_CARD.md").read_text()


def test_the_same_cells_give_the_same_bundle(
    untrained: ModelBundle, drawn: tuple[list[bytes], np.ndarray, list[str]], adapted: Adaptation
) -> None:
    assert adapt(untrained, *drawn, fitting=QUICK).bundle.digest == adapted.bundle.digest


def test_the_table_has_a_line_a_class(adapted: Adaptation) -> None:
    lines = table_of(adapted).splitlines()
    assert [line.split()[0] for line in lines] == ["cells", *KINDS, "accuracy", "balanced"]


def test_cells_of_another_lab_begin_with_the_network_for_other_labs(
    untrained: ModelBundle, drawn: tuple[list[bytes], np.ndarray, list[str]]
) -> None:
    weights = {n: t * 1.1 if t.ndim > 1 else t for n, t in untrained.state_dict.items()}
    alone = replace(untrained, state_dict=weights)
    home = HomeReference.learn(measure_all(drawn[0]), drawn[1])
    given = replace(untrained, home=home, elsewhere=alone)
    grey = [np.full((64, 64, 3), 40 + i, np.uint8) for i in range(24)]
    assert begun_with(given, grey) is alone
    assert begun_with(given, drawn[0]) is given
    assert begun_with(untrained, grey) is untrained
    far = replace(home, centre=home.centre + 9 * home.spread)
    adapted = adapt(replace(given, home=far), *drawn, fitting=QUICK)
    straight = adapt(alone, *drawn, fitting=QUICK)
    for name, tensor in straight.bundle.state_dict.items():
        assert torch.equal(tensor, adapted.bundle.state_dict[name])
    assert adapted.bundle.elsewhere is None
    facts = adapted.bundle.facts
    assert facts["adapted"]["from"] == replace(given, home=far).digest
    assert alone.digest in facts["pretraining"]
    assert "`, its network for other laboratories, with" in write_card(adapted.bundle.manifest())
    assert "its network for other laboratories, with" not in write_card(straight.bundle.manifest())
    before = [made.before.evaluation.balanced_accuracy for made in (adapted, straight)]
    assert before[0] >= before[1]


def test_steps_move_the_whole_network_and_lower_the_loss(
    untrained: ModelBundle, drawn: tuple[list[bytes], np.ndarray, list[str]]
) -> None:
    cells = Cells.decoded(drawn[0], drawn[1], untrained.preprocess)
    still = fit_network(untrained, cells, QUICK)
    moved = fit_network(untrained, cells, replace(QUICK, steps=12, learning_rate=1e-3))
    first = next(iter(untrained.state_dict))
    assert torch.equal(still.state_dict[first], untrained.state_dict[first])
    assert not torch.equal(moved.state_dict[first], untrained.state_dict[first])
    rows = np.arange(len(cells.labels))

    def loss(bundle: ModelBundle) -> float:
        logits = torch.from_numpy(seen_by(bundle.build(), cells.pixels)[1])
        return float(torch.log_softmax(logits, 1)[rows, cells.labels].mean().neg())

    assert loss(moved) < loss(still) < loss(untrained)


def test_steps_are_taken_with_views_that_are_mixed_in_any_order(
    untrained: ModelBundle,
    drawn: tuple[list[bytes], np.ndarray, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Fitting().augmentation.mixup > 0
    orders = []

    def noted(
        views: torch.Tensor, targets: torch.Tensor, *rest: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        orders.append(targets.argmax(1).tolist())
        return mix(views, targets, *rest)

    monkeypatch.setattr("bloodcells.training.adapting_fit.mix", noted)
    cells = Cells.decoded(drawn[0], drawn[1], untrained.preprocess)
    quick = replace(QUICK, steps=2)
    plain = replace(quick, augmentation=replace(quick.augmentation, mixup=0.0))
    mixed, again, alone = (
        fit_network(untrained, cells, f).state_dict for f in (quick, quick, plain)
    )
    first = next(iter(mixed))
    assert torch.equal(mixed[first], again[first])
    assert not torch.equal(mixed[first], alone[first])
    assert orders and all(order != sorted(order) for order in orders), "classes meet each other"


def test_early_layers_take_the_labs_cells_for_the_usual(
    untrained: ModelBundle, drawn: tuple[list[bytes], np.ndarray, list[str]]
) -> None:
    cells = Cells.decoded(drawn[0], drawn[1], untrained.preprocess)
    fitted = fit_network(untrained, cells, replace(QUICK, steps=4))
    usual = statistics_at(untrained.build().eval(), torch.from_numpy(cells.pixels), 1.0)
    assert torch.equal(statistics_of(fitted.build()), usual)
    assert not torch.equal(usual, statistics_of(untrained.build()))


def test_of_many_cells_early_layers_are_settled_among_some(untrained: ModelBundle) -> None:
    """From the first to the last: they may lie class by class."""
    shades = np.arange(0, 240, dtype=np.uint8)[:, None, None, None]
    pixels = np.broadcast_to(shades, (240, 64, 64, 3)).copy()
    some = torch.from_numpy(pixels[np.linspace(0, 239, 120).astype(int)])
    usual = statistics_at(untrained.build().eval(), some, 1.0)
    assert torch.equal(statistics_of(settled(untrained, pixels)), usual)


def test_cells_that_are_held_out_have_no_influence(
    untrained: ModelBundle, drawn: tuple[list[bytes], np.ndarray, list[str]]
) -> None:
    images, labels, _ = drawn
    kept = np.flatnonzero(np.arange(len(labels)) % 2)
    # The others of another type than they are said to be: with them another crop would be best.
    others = [images[(n + 8) % 24] if n % 2 == 0 else image for n, image in enumerate(images)]
    views = [SiteViews(untrained, each, labels, QUICK.hold) for each in (images, others)]
    assert views[1].best(np.arange(len(labels))) != views[1].best(kept)
    fitted = [fit_to_cells(each, kept, QUICK)[0] for each in views]
    assert fitted[0].digest == fitted[1].digest


def test_slides_stay_whole_and_every_class_can_be_learned_in_every_fold() -> None:
    rng = np.random.default_rng(3)
    for seed in range(30):
        labels = np.repeat([1, 4, 6], 12)
        groups = [f"{rng.integers(2 + seed % 5)}" for _ in labels]
        folds, not_apart = folds_of(labels, groups, seed=seed)
        assert not_apart == ()
        for name in set(groups):
            assert len({folds[i] for i, group in enumerate(groups) if group == name}) == 1
        for fold in range(folds.max() + 1):
            assert set(labels[folds != fold]) == {1, 4, 6}


def test_a_class_of_one_slide_is_divided_and_named() -> None:
    labels = np.repeat([1, 4], 10)
    groups = ["only"] * 10 + [f"s{i % 5}" for i in range(10)]
    folds, not_apart = folds_of(labels, groups)
    assert not_apart == ("eosinophil",)
    assert (np.bincount(folds[:10]) == 2).all()


def test_the_card_of_cells_of_one_slide_says_what_its_figures_are_worth(
    untrained: ModelBundle, drawn: tuple[list[bytes], np.ndarray, list[str]], tmp_path: Path
) -> None:
    images, labels, _ = drawn
    adapted = adapt(untrained, images, labels, ["one"] * len(labels), fitting=QUICK)
    adapted.bundle.save(str(tmp_path))
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "24 labelled cells of 1 slide: " in card
    assert "their slide where they could be kept apart." in card
    assert f"- {not_kept_apart(KINDS)}." in card
    assert not_kept_apart(KINDS) in warnings_of(adapted, from_reviews=False)


def test_a_class_that_shares_a_divided_slide_is_named_too() -> None:
    labels = np.repeat([1, 4, 4], 10)
    groups = ["both"] * 20 + ["other"] * 10
    _, not_apart = folds_of(labels, groups)
    assert not_apart == ("eosinophil", "lymphocyte")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], "no class only"),
        ([6] * 10, "neutrophil only"),
        ([6] * 10 + [4] * 3, "3 of lymphocyte"),
    ],
)
def test_too_little_is_refused(untrained: ModelBundle, labels: list[int], said: str) -> None:
    images = [b""] * len(labels)
    with pytest.raises(ConfigurationError, match=said):
        adapt(untrained, images, np.array(labels, np.int64), ["s"] * len(labels))


def test_what_is_worse_is_refused(adapted: Adaptation) -> None:
    worse = replace(adapted, before=adapted.after, after=adapted.before)
    with pytest.raises(BundleError, match="worse on these 24 cells"):
        worse.require_no_worse()


def test_the_job_writes_a_bundle(
    untrained: ModelBundle,
    adapted: Adaptation,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    untrained.save(str(tmp_path / "given"))
    words = ["--bundle", str(tmp_path / "given"), "--store", str(store), "--steps", "0"]
    words += ["--slide-pattern", r"/(\w)-\d[^/]*$", "--out", str(tmp_path / "new")]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "balanced" in printed.out
    assert "slides" in printed.err
    assert "every cell will be marked for review" in printed.err
    made = ModelBundle.load(str(tmp_path / "new"))
    assert made.facts["adapted"]["from"] == untrained.digest
    assert made.facts["adapted"]["slides"] == 3
    assert main(words) == 1  # it is there already
    assert "choose another folder" in capsys.readouterr().err
    worse = replace(adapted, before=adapted.after, after=adapted.before)
    monkeypatch.setattr("jobs.adapt.adapt", lambda *given, **named: worse)
    assert main([*words[:-1], str(tmp_path / "worse")]) == 1
    assert "was not written" in capsys.readouterr().err
    assert not (tmp_path / "worse").exists()


def test_the_job_takes_one_source_of_labels() -> None:
    with pytest.raises(ConfigurationError, match="either --store or --run"):
        AdaptConfig(out="x")
    with pytest.raises(ConfigurationError, match="either --store or --run"):
        AdaptConfig(out="x", store=("a",), run="b")


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"seed": -1}])
def test_settings_below_0_are_refused_before_anything_is_read(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigurationError, match=f"--{name} -1: give 0 or more"):
        AdaptConfig(out="x", store=("y",), **wrong)
