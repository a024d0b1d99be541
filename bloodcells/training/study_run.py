"""One study from a dataset to the best recipe and a report; a killed one goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc
import torch

from bloodcells import storage
from bloodcells.errors import RunError, RunIncompleteError
from bloodcells.lease import Lease
from bloodcells.models import start_model
from bloodcells.report.study import StudyFacts, write_study_report
from bloodcells.runs import now
from bloodcells.training.ingest import digest_of, load_training_data
from bloodcells.training.run import Say, TrainingRequest
from bloodcells.training.search_space import SearchSpace
from bloodcells.training.study import (
    RECIPE_NAME,
    StudyRecord,
    TrialRecord,
    finished_trials,
    forget_trials,
    open_study,
    ranked,
)
from bloodcells.training.tuning import Study, describe, run_trials


def tune_recipe(
    out: str, request: TrainingRequest, num_trials: int, say: Say, *, restart: bool = False
) -> StudyRecord:
    """Search around a recipe, or go on with a study that is there; Ray must be running.

    Args:
        out: URI of the study's folder.
        request: what every trial trains on, and the recipe in the middle of the search.
        num_trials: trials in all, the recipe as it is among them. A study may be made longer.
        say: prints a line for a person.
        restart: throw away what is there.

    Returns:
        The study's record; ``out`` holds ``study.json``, ``recipe.json`` and ``report.html``.

    Raises:
        RunIncompleteError: a trial could not reach its data; the same call goes on.
        RunError: there is another study, or all trials failed.
        BloodcellsError: a setting cannot be used.
    """
    recipe = request.recipe.without_recall() if request.from_scratch else request.recipe
    space = SearchSpace(recipe=recipe)
    torch.manual_seed(recipe.seed)  # random weights to start from are the same in every session
    start, pretraining = start_model(
        recipe.model, weights=request.weights, from_scratch=request.from_scratch
    )
    settings = {
        "recipe": recipe.to_dict(),
        "preprocess": request.preprocess.to_dict(),
        "data": digest_of(request.manifest),
        "pretraining": pretraining,
    }
    with Lease(out) as lease:
        record = _take_up(out, settings, space, num_trials, say, restart=restart)
        if record.status == "complete":
            say(f"{out} is complete already")
            return record
        finished = finished_trials(out, num_trials)
        left = [number for number in range(1, num_trials + 1) if number not in finished]
        unreachable: dict[int, str] = {}
        if left:
            data = load_training_data(request.manifest, request.preprocess, request.source)
            say(
                f"{len(left)} trials to run, of {num_trials}; {recipe.model}, "
                f"{space.num_epochs} epochs each, {len(data.train.labels):,} images to train on, "
                f"{len(data.validation.labels):,} to choose by"
            )
            shared = Study(folder=out, space=space, data=data, weights=start.state_dict())
            unreachable = run_trials(shared, left, list(finished.values()), say, lease.check)
            finished = finished_trials(out, num_trials)
        _conclude(record, space, list(finished.values()), request, say)
        if missing := num_trials - len(finished):
            reason = next(iter(unreachable.values()), "their workers were lost")
            raise RunIncompleteError(
                f"{out}: {missing} of {num_trials} trials are left over ({reason}); run the same "
                "command again to go on"
            )
    return record


def _take_up(
    out: str,
    settings: dict[str, Any],
    space: SearchSpace,
    num_trials: int,
    say: Say,
    *,
    restart: bool,
) -> StudyRecord:
    """Go on with the study that is there, or begin one."""
    found = None if restart else open_study(out)
    if found is None:
        if not restart and storage.exists(storage.join(out, RECIPE_NAME)):
            raise RunError(
                f"{out} holds a {RECIPE_NAME} that no study put there; choose another --out, or "
                "replace it with --restart"
            )
        forget_trials(out)
        found = StudyRecord(
            folder=out, settings=settings, space=space.to_dict(), num_trials=num_trials
        )
        found.save()
        return found
    found.require_same(settings, num_trials)
    if num_trials > found.num_trials:
        found.num_trials, found.status, found.finished = num_trials, "running", None
        found.save()
    if found.status == "running":
        say(f"going on with the study in {out}")
    return found


def _conclude(
    record: StudyRecord,
    space: SearchSpace,
    trials: Sequence[TrialRecord],
    request: TrainingRequest,
    say: Say,
) -> None:
    """Write what the trials that are over come to: the record, the best recipe, the report.

    Raises:
        RunError: all trials failed.
    """
    order = ranked(trials, space.recipe.metric)
    record.trials = [trial.summary() for trial in sorted(trials, key=lambda t: t.number)]
    if not order or order[0].outcome == "failed":
        record.save()
        if len(order) < record.num_trials:
            return
        raise RunError(
            f"{record.folder}: all {len(order)} trials failed, the first one because "
            f"{trials[0].failure}; nothing was chosen. Mend that, and start anew with --restart"
        )
    best = order[0]
    record.best = best.number
    recipe = space.recipe_of(space.configuration(best.number))
    text = json.dumps(recipe.to_dict(), indent=2, ensure_ascii=False) + "\n"
    storage.put(storage.join(record.folder, RECIPE_NAME), text.encode())
    validated = request.manifest.filter(pc.field("used") & (pc.field("split") == "val"))
    report = write_study_report(
        record.folder,
        StudyFacts(
            study_uri=record.folder,
            source=request.source,
            model_name=recipe.model,
            metric=recipe.metric,
            num_validation=len(validated),
            num_trials=record.num_trials,
            space=record.space,
            trials=[{**trial.summary(), "history": trial.history} for trial in order],
            stages=[stage.to_dict() for stage in recipe.stages],
            size=request.preprocess.size,
            crop=request.preprocess.crop,
            settings=record.settings,
        ),
    )
    if len(order) == record.num_trials:
        record.status, record.finished = "complete", now()
    record.save()
    say(f"best of {len(order)} trials: {describe(best, space)}")
    say(f"recipe: {storage.join(record.folder, RECIPE_NAME)}")
    say(f"report: {report}")
