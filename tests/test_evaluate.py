"""The figures of a run are those of its labels, with all that they leave out said beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binom
from sklearn.metrics import confusion_matrix, log_loss

from bloodcells import storage
from bloodcells.cells import CLASSES
from jobs.evaluate import main
from tests.s3 import S3Server
from tests.test_report import HOSTILE, Page, make_run

SLIDES = tuple(f"slide-{i:02d}" for i in range(12))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(
        tmp_path_factory.mktemp("labelled"),
        slides=SLIDES,
        with_images=False,
        run_id="r1",
        bundle={"uri": "bundle", "digest": "sha256:0", "model_name": "tf_efficientnet_lite0"},
    )


@pytest.fixture(scope="module")
def scores(run: Path) -> pd.DataFrame:
    return pq.read_table(run / "scores").to_pandas()


def evaluated(run: Path, out: Path, *flags: str) -> dict[str, Any]:
    assert main(["--run", str(run), "--out", str(out), *flags]) == 0
    return dict(json.loads((out / "evaluation.json").read_text()))


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(list(flags)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_figures_follow_from_the_scores(
    run: Path, scores: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(run, tmp_path)
    right = scores["label"] == scores["predicted_class"]
    whole, kept = found["all"], found["not_sent_to_review"]
    assert whole["images"] == found["labels"]["labelled"] == len(scores) == 468
    assert whole["accuracy"]["value"] == pytest.approx(right.mean())
    assert np.array_equal(
        whole["confusion"],
        confusion_matrix(scores["label"], scores["predicted_class"], labels=CLASSES),
    )
    probabilities = np.array(scores[[f"prob_{name}" for name in CLASSES]], np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    truth = [CLASSES.index(name) for name in scores["label"]]
    assert whole["log_loss"]["value"] == pytest.approx(
        log_loss(truth, probabilities, labels=range(8)), rel=1e-4
    )
    unseen = ~scores["needs_review"]
    assert kept["images"] == unseen.sum()
    assert kept["coverage"]["value"] == pytest.approx(unseen.mean())
    assert kept["accuracy"]["value"] == pytest.approx(right[unseen].mean())
    assert kept["errors"] == (~right & unseen).sum()
    assert kept["errors_of_all"] == (~right).sum()
    errors, images = kept["errors"], kept["images"]
    assert binom.cdf(errors, images, kept["error_at_most"]) == pytest.approx(0.05)
    curve = found["risk_coverage"]
    assert curve[-1] == {"coverage": 1.0, "error": pytest.approx((~right).mean())}
    assert [point["coverage"] for point in curve] == sorted({p["coverage"] for p in curve})
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece"):
        figure = whole[name]
        assert figure["low"] < figure["value"] < figure["high"], name
    assert found["bootstrap"]["unit"] == "slide"
    assert found["bootstrap"]["groups"] == 12
    assert found["bundle"]["digest"] == "sha256:0"
    assert sum(found["labels"]["quarantined"].values()) == 12
    printed = capsys.readouterr().out
    assert f"{100 * right.mean():.2f} [" in printed
    assert "over 468 labelled images; 95 % intervals by drawing 12 slides anew" in printed
    assert "12 labelled image(s) could not be scored" in printed
    assert f"of those at most {100 * kept['error_at_most']:.2f} % are wrong" in printed


def test_page_and_markdown_say_the_same(run: Path, tmp_path: Path) -> None:
    found = evaluated(run, tmp_path)
    page = Page(str(tmp_path / "report.html"))
    value = f"{100 * found['all']['accuracy']['value']:.2f}"
    assert f"{value} % right" in page.text
    assert f"| accuracy, % | {value} [" in (tmp_path / "evaluation.md").read_text()
    most = f"{100 * found['not_sent_to_review']['error_at_most']:.2f} %"
    assert f"with 95 % confidence at most {most}" in page.text
    assert f"with 95 % confidence at most {most}" in (tmp_path / "evaluation.md").read_text()
    for remark in found["remarks"]:
        assert remark in page.text
        assert remark in (tmp_path / "evaluation.md").read_text()
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "a", "form"}
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    for name in ("one", "two", "one"):
        evaluated(run, tmp_path / name)
    for file in ("evaluation.json", "evaluation.md", "report.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_images_out_of_domain_are_not_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path, slides=SLIDES[:3], aliens=5, with_images=False)
    found = evaluated(run, tmp_path / "out")
    assert found["labels"]["out_of_domain"] == 15
    assert found["risk_coverage"][-1]["coverage"] == pytest.approx(1 - 15 / 117)
    assert found["not_sent_to_review"]["images"] <= 102
    page = Page(str(tmp_path / "out" / "report.html"))
    assert "15 of them because they are like no cell type" in page.text


def test_images_can_be_drawn_instead(run: Path, tmp_path: Path) -> None:
    found = evaluated(run, tmp_path, "--by", "image")
    assert found["bootstrap"]["unit"] == "image"
    assert found["bootstrap"]["groups"] == 468
    assert "they are of 12 slides" in found["bootstrap"]["warning"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_by_image_uri_replaces_the_labels(
    kind: str, run: Path, scores: pd.DataFrame, tmp_path: Path
) -> None:
    some = scores[["image_uri", "label"]][:200].copy()
    some.loc[:9, "label"] = "basophil"
    some.loc[10:14, "label"] = "smudge"
    some.loc[15:16, "label"] = None
    extra = pd.DataFrame({"image_uri": ["elsewhere"], "label": ["monocyte"]})
    table = tmp_path / f"labels.{kind}"
    rows = pd.concat([some, extra])
    rows.to_csv(table, index=False) if kind == "csv" else rows.to_parquet(table)
    found = evaluated(run, tmp_path / "out", "--labels", str(table))
    labels = found["labels"]
    assert labels["labelled"] == 193
    assert labels["unlabelled"] == 275
    assert labels["unknown"] == {"smudge": 5}
    assert labels["contradicting"] == (scores["label"][:10] != "basophil").sum()
    assert labels["rows_unused"] == 1
    assert found["all"]["classes"]["basophil"]["labelled"] >= 10
    assert any("smudge (5)" in remark for remark in found["remarks"])


def test_a_table_by_archive_and_member_with_aliases_and_splits(
    run: Path, scores: pd.DataFrame, tmp_path: Path
) -> None:
    rows = pd.DataFrame(
        {
            "shard": "store",
            "member": scores["image_uri"].map(lambda uri: uri.rsplit("/", 1)[-1]),
            "class": scores["label"].replace({"immature_granulocyte": "ig", "monocyte": "5"}),
            "split": ["test" if i % 3 else "val" for i in range(len(scores))],
        }
    )
    table = tmp_path / "labels.csv"
    rows.to_csv(table, index=False)
    flags = ("--labels", str(table), "--splits", str(table), "--split", "val")
    found = evaluated(run, tmp_path / "out", *flags)
    wanted = scores[::3]
    assert found["labels"]["labelled"] == len(wanted) == 156
    assert found["labels"]["outside_split"] == 312
    assert found["labels"]["contradicting"] == 0
    assert found["all"]["accuracy"]["value"] == pytest.approx(
        (wanted["label"] == wanted["predicted_class"]).mean()
    )


def test_tables_that_do_not_fit_are_refused(
    run: Path, scores: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "labels.csv"
    asked = ("--run", str(run), "--out", str(tmp_path / "out"), "--labels", str(table))
    table.write_text("image_uri,label\nelsewhere,monocyte\n")
    assert "is about no image of the run" in refused(capsys, *asked)
    table.write_text("file,label\nelsewhere,monocyte\n")
    assert "needs the columns image_uri, or shard and member" in refused(capsys, *asked)
    table.write_text("image_uri,label\na,monocyte\na,neutrophil\n")
    assert "says both 'monocyte' and 'neutrophil' of a" in refused(capsys, *asked)
    table.write_text(f"image_uri,label\n{scores['image_uri'][0]},smudge\n")
    assert "it says 'smudge'" in refused(capsys, *asked)
    table.write_text("image_uri,split\nelsewhere,val\n")
    asked = (*asked[:4], "--splits", str(table), "--split", "val")
    assert "has no image of the run in that split" in refused(capsys, *asked)
    assert not (tmp_path / "out").exists()


def test_a_run_without_labels_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, labelled=False, with_images=False)
    error = refused(capsys, "--run", str(run), "--out", str(tmp_path / "out"))
    assert "has no scored image with a label" in error


def test_an_unfinished_run_is_refused_unless_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, slides=SLIDES[:3], unfinished=1, with_images=False)
    out = tmp_path / "out"
    error = refused(capsys, "--run", str(run), "--out", str(out))
    assert "is not complete (status incomplete, 40 of 120 images without a result)" in error
    found = evaluated(run, out, "--incomplete")
    assert found["run"]["missing"] == 40
    assert found["all"]["images"] == 78
    assert "The run is incomplete: 40 of 120 images" in found["remarks"][0]
    assert "Only 2 slides" in found["remarks"][-1]


def test_scores_of_two_bundles_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, with_images=False)
    part = sorted((run / "scores").iterdir())[0]
    table = pq.read_table(part)
    column = table.schema.get_field_index("bundle_digest")
    other = pa.array(["sha256:1"] * len(table))
    pq.write_table(table.set_column(column, table.schema.field(column), other), part)
    error = refused(capsys, "--run", str(run), "--out", str(tmp_path / "out"))
    assert "holds scores of several bundles (sha256:0, sha256:1)" in error


def test_a_folder_with_another_report_is_left_alone(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "--run", str(run), "--out", str(run))
    assert "holds a run.json" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--by", "patient"), "give slide or image"),
        (("--split", "val"), "say with --splits"),
        (("--splits", "x.csv"), "say with --split"),
    ],
)
def test_wrong_usage(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--run", "r", "--out", "o", *flags])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_names_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path, slides=(HOSTILE, "b"), with_images=False, run_id=HOSTILE)
    scores = pq.read_table(run / "scores").to_pandas()
    table = tmp_path / "labels.csv"
    scores.loc[0, "label"] = HOSTILE
    scores[["image_uri", "label"]].to_csv(table, index=False)
    found = evaluated(run, tmp_path / "out", "--labels", str(table))
    assert found["labels"]["unknown"] == {HOSTILE: 1}
    for name in ("report.html", "evaluation.md"):
        source = (tmp_path / "out" / name).read_text()
        assert not [c for c in source if not (c.isprintable() or c == "\n")]
    assert "<script>alert" not in (tmp_path / "out" / "report.html").read_text()


def test_runs_and_evaluations_on_s3(run: Path, s3: S3Server, tmp_path: Path) -> None:
    there = f"{s3.uri}/evaluated"
    for path in run.rglob("*"):
        if path.is_file():
            storage.put(storage.join(there, str(path.relative_to(run))), path.read_bytes())
    out = storage.join(there, "evaluation")
    assert main(["--run", there, "--out", out]) == 0
    here = evaluated(run, tmp_path)
    found = json.loads(storage.read(storage.join(out, "evaluation.json")))
    assert found["all"] == here["all"]
