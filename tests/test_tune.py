"""A study: what is tried, what is kept, what goes on and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bloodcells.augment import Augmentation
from bloodcells.errors import RunError, RunMismatchError
from bloodcells.imaging import Preprocess
from bloodcells.models import start_model
from bloodcells.training import tuning
from bloodcells.training.ingest import load_training_data
from bloodcells.training.loop import StagedTraining, TrainingTask
from bloodcells.training.presets import preset, read_recipe
from bloodcells.training.recipe import Recipe, Stage
from bloodcells.training.run import TrainingRequest
from bloodcells.training.search_space import ALL, HEAD_FIRST, OWN, SearchSpace
from bloodcells.training.study import (
    TrialRecord,
    best_figures,
    diverged_stage,
    ranked,
    trial_folder,
)
from bloodcells.training.study_run import tune_recipe
from tests.manifests import manifest_of, write_cells

RECIPE = Recipe(
    model="custom_cnn", stages=(Stage(name="all", epochs=2),), batch_size=32, metric="val_loss"
)


# The space -------------------------------------------------------------------------------------


def test_the_first_trial_is_the_recipe_as_it_is() -> None:
    for recipe in (Recipe(), preset("report"), RECIPE):
        space = SearchSpace(recipe=recipe)
        tried = space.recipe_of(space.configuration(1))
        assert tried.to_dict() == recipe.to_dict()


def test_trials_lie_within_the_ranges_and_fill_them() -> None:
    space = SearchSpace(recipe=Recipe(seed=3))
    tried = [space.configuration(number) for number in range(2, 66)]
    rates = [each.learning_rate for each in tried]
    low, high = space.learning_rates
    assert (low, high) == pytest.approx((6e-5, 1.5e-3))
    assert min(rates) < 1.2 * low and max(rates) > high / 1.2
    assert all(low <= rate <= high for rate in rates)
    assert sum(rate < 3e-4 for rate in rates) == pytest.approx(32, abs=2), "log-uniform"
    assert all(0.005 <= each.weight_decay <= 0.5 for each in tried)
    assert all(0 <= each.strength <= 2 for each in tried)
    assert {each.staging for each in tried} == {OWN, ALL, HEAD_FIRST}
    assert len({json.dumps(each.to_dict()) for each in tried}) == 64


def test_a_trial_depends_on_its_number_and_the_seed_alone() -> None:
    one, again = SearchSpace(recipe=RECIPE), SearchSpace(recipe=RECIPE)
    assert one.configuration(7) == again.configuration(7)
    other = SearchSpace(recipe=replace(RECIPE, seed=1))
    assert other.configuration(7) != one.configuration(7)


def test_stagings_share_the_epochs() -> None:
    assert SearchSpace(recipe=Recipe()).stagings == (OWN, ALL, HEAD_FIRST)
    one = Recipe(stages=(Stage(name="all", epochs=36, averaging=0.995, recall=0.2),))
    space = SearchSpace(recipe=one)
    assert space.stagings == (ALL, HEAD_FIRST)
    chosen = replace(space.configuration(1), staging=HEAD_FIRST, learning_rate=6e-4, strength=0.5)
    recipe = space.recipe_of(chosen)
    assert [(s.name, s.unfreeze, s.epochs) for s in recipe.stages] == [
        ("head", "head", 6),
        ("all", "all", 30),
    ]
    assert [s.peak_rate for s in recipe.stages] == [6e-4, 6e-4]
    assert recipe.augmentation == Augmentation().scaled(0.5)
    assert [s.recall for s in recipe.stages] == [0.0, 0.2]
    assert SearchSpace(recipe=one.changed(epochs=1)).stagings == (ALL,)


def test_stages_of_a_recipe_keep_the_ratios_of_their_rates() -> None:
    space = SearchSpace(recipe=preset("report"))
    assert space.stagings == (OWN, ALL, HEAD_FIRST)
    assert space.num_epochs == 600
    recipe = space.recipe_of(replace(space.configuration(1), learning_rate=6e-6))
    assert [s.peak_rate for s in recipe.stages] == pytest.approx([2e-4, 2e-4, 6e-6])
    assert [s.epochs for s in recipe.stages] == [200, 200, 200]


def test_every_trial_gets_epochs_in_which_it_trains_everything() -> None:
    for epochs in (1, 2, 4, 12, 60):
        space = SearchSpace(recipe=Recipe().changed(epochs=epochs))
        grace = tuning.grace_epochs(space)
        assert 1 <= grace <= space.num_epochs
        assert grace > space.num_head_epochs()


# Trials ----------------------------------------------------------------------------------------


def epoch(loss: float, accuracy: float = 0.5, **more: Any) -> dict[str, Any]:
    plain = {"stage": 0, "is_best": True, "seconds": 1.0, "images_per_s": 9.0}
    return plain | {"val_loss": loss, "val_accuracy": accuracy, "val_macro_f1": accuracy} | more


def trial(number: int, outcome: Any, *losses: float) -> TrialRecord:
    history = [epoch(loss) for loss in losses]
    return TrialRecord(
        number=number,
        configuration={},
        outcome=outcome,
        best=best_figures(history, "val_loss"),
        failure=None,
        history=history,
    )


def test_one_that_was_stopped_early_or_failed_is_never_preferred() -> None:
    trials = [
        trial(1, "failed", 0.01),
        trial(2, "stopped early", 0.1),
        trial(3, "complete", 0.9, 0.4, 0.5),
        trial(4, "complete", 0.3, 0.35),
        trial(5, "failed"),
    ]
    assert [t.number for t in ranked(trials, "val_loss")] == [4, 3, 2, 1, 5]


def test_the_best_epoch_has_numbers_and_the_lower_loss() -> None:
    history = [epoch(0.5, 0.9), epoch(0.4, 0.9), epoch(float("nan"), 1.0)]
    best = best_figures(history, "val_accuracy")
    assert best is not None
    assert (best["epochs"], best["val_loss"]) == (2, 0.4)
    assert best_figures([], "val_loss") is None


def test_a_stage_that_ends_too_soon_has_diverged() -> None:
    recipe = replace(RECIPE, stages=(Stage(name="one", epochs=4, patience=2),))
    best, worse = epoch(0.5), epoch(0.6, is_best=False)
    assert diverged_stage(recipe, [best] * 4) is None
    assert diverged_stage(recipe, [best, worse, worse]) is None
    assert diverged_stage(recipe, [best, worse]) == "one"
    assert diverged_stage(recipe, []) == "one"


def test_the_scheduler_knows_what_finished_trials_reported() -> None:
    space = SearchSpace(recipe=Recipe(metric="val_loss").changed(epochs=4))
    before = [trial(n, "complete", 0.3, 0.2, 0.1, 0.1) for n in (1, 2)]
    bad = tuning._result(space, 2, epoch(0.9))
    new: Any = SimpleNamespace(trial_id="new")
    controller: Any = None
    for finished, decision in (([], "CONTINUE"), (before, "STOP")):
        scheduler = tuning._scheduler(space, finished)
        scheduler.on_trial_add(controller, new)
        assert scheduler.on_trial_result(controller, new, bad) == decision


# A study ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> TrainingRequest:
    store = write_cells(tmp_path_factory.mktemp("cells") / "cells", 6)
    return TrainingRequest(
        manifest=manifest_of(store),
        source="cells",
        stores=[str(store)],
        recipe=RECIPE,
        preprocess=Preprocess(size=32, crop=0.65),
        from_scratch=True,
    )


def stamps(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_study_from_end_to_end(
    request_: TrainingRequest,
    ray_cluster: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out, lines = tmp_path / "study", list[str]()
    record = tune_recipe(str(out), request_, 2, lines.append)
    assert record.status == "complete"
    assert [t["number"] for t in record.trials] == [1, 2]
    assert all(t["outcome"] in ("complete", "stopped early") for t in record.trials)
    assert not list(out.rglob("*.pt")), "checkpoints are forgotten"
    noise = capfd.readouterr()
    assert not (noise.out + noise.err).strip(), "Tune is quiet"

    # The recipe is what jobs.train takes, and the report shows what was chosen.
    space = SearchSpace(recipe=RECIPE)
    assert record.best is not None
    chosen = space.recipe_of(space.configuration(record.best))
    assert read_recipe(str(out / "recipe.json")).to_dict() == chosen.to_dict()
    page = (out / "report.html").read_text()
    assert "Only validation chose" in page
    assert f"number {record.best} has the best validation loss" in page

    # The same again changes nothing; other settings and fewer trials are refused.
    before = stamps(out)
    assert tune_recipe(str(out), request_, 2, lines.append) == record
    other = replace(request_, recipe=replace(RECIPE, batch_size=16))
    with pytest.raises(RunMismatchError, match=r"batch_size: 32 there, 16 asked for.*--restart"):
        tune_recipe(str(out), other, 2, lines.append)
    with pytest.raises(RunMismatchError, match=r"study of 2 trials; give --trials 2 or more"):
        tune_recipe(str(out), request_, 1, lines.append)
    assert stamps(out) == before

    # Interrupted after an epoch of trial 2, and made longer: what is over stays as it is.
    second = Path(trial_folder(str(out), 2))
    history = json.loads((second / "trial.json").read_text())["history"]
    (second / "trial.json").unlink()
    interrupt_after_an_epoch(request_, second)
    assert list(second.glob("checkpoint-*.pt"))
    longer = tune_recipe(str(out), request_, 3, lines.append)
    assert [t["number"] for t in longer.trials] == [1, 2, 3]
    again = json.loads((second / "trial.json").read_text())["history"]
    for name in ("step", "learning_rate", "loss", "val_loss", "val_accuracy"):
        both = list(zip(again, history, strict=False))
        assert [a[name] for a, _ in both] == pytest.approx([h[name] for _, h in both], rel=1e-4)
    first = str(Path(trial_folder(str(out), 1)) / "trial.json")
    assert stamps(out)[first] == before[first]
    assert not list(out.rglob("*.pt"))


def interrupt_after_an_epoch(request_: TrainingRequest, folder: Path) -> None:
    """Leave what a trial leaves that was killed: the checkpoint of its first epoch."""
    torch.manual_seed(RECIPE.seed)
    weights = start_model("custom_cnn", from_scratch=True)[0].state_dict()
    space = SearchSpace(recipe=RECIPE)
    task = TrainingTask(
        recipe=space.recipe_of(space.configuration(2)),
        data=load_training_data(request_.manifest, request_.preprocess, "cells"),
        weights=weights,
        folder=str(folder),
    )

    def stop(figures: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StagedTraining(task, announce=stop).run()


def test_a_study_whose_trials_all_fail_says_why(
    request_: TrainingRequest, ray_cluster: None, tmp_path: Path
) -> None:
    deep = replace(RECIPE, stages=(Stage(name="deep", unfreeze="blocks:99"),))
    for _ in range(2):  # the second time nothing is left to run
        with pytest.raises(RunError, match=r"all 1 trials failed.*blocks:99.*--restart"):
            tune_recipe(str(tmp_path), replace(request_, recipe=deep), 1, lambda line: None)
    (found,) = json.loads((tmp_path / "study.json").read_text())["trials"]
    assert (found["outcome"], found["best"], found["epochs"]) == ("failed", None, 0)
    assert not (tmp_path / "recipe.json").exists()


def test_a_recipe_that_no_study_made_is_not_replaced(
    request_: TrainingRequest, tmp_path: Path
) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(RunError, match=r"holds a recipe\.json that no study put there"):
        tune_recipe(str(tmp_path), request_, 1, lambda line: None)
