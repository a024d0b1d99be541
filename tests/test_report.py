"""The report shows what a run folder holds, escapes what data brought, lives with what is gone."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binom

from bloodcells import publish
from bloodcells.cells import CLASSES
from bloodcells.errors import RunError
from bloodcells.evaluation import SelectiveTally, at_most
from bloodcells.records import (
    Shard,
    ShardKind,
)
from bloodcells.report import write_report
from bloodcells.report.charts import risk_coverage
from bloodcells.report.data import CELLS_SHOWN, SLIDES_SHOWN, gather
from bloodcells.report.thumbnails import fetch
from bloodcells.sites import SiteProfile
from bloodcells.stores import open_store, plan_source, read_shard
from bloodcells.synthetic import ImageFile, draw_cell, encode_jpeg, write_archive
from jobs.report import main
from tests.run_folders import HOSTILE, make_run


class Page(HTMLParser):
    """Collects what a browser would see: tags with attributes, and the text."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.source = Path(uri).read_text("utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def labelled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(
        tmp_path_factory.mktemp("labelled"),
        slides=("slide-a", HOSTILE),
        run_id="r1",
        bundle={"uri": "bundle", "digest": "sha256:abc", "model_name": "tf_efficientnet_lite0"},
        settings={"precision": "float32", "shard_size": 40},
        timings={"wall_seconds": 75.0, "scoring_seconds": 60.0, "images_per_second": 123.4},
        environment={"torch": "9.9"},
    )


@pytest.fixture(scope="module")
def page(labelled_run: Path) -> Page:
    return Page(write_report(str(labelled_run)))


def test_what_is_known_of_the_bundle_is_shown(tmp_path: Path, page: Page) -> None:
    measured = [
        {
            "what": f"cells of {HOSTILE}",
            "figure": "accuracy",
            "value": 0.5,
            "low": 0.4,
            "high": 0.6,
        },
        {"what": "photographs", "figure": "AUC", "value": 0.9876},
    ]
    bundle = {"uri": "bundle", "digest": "sha256:abc", "measured": measured}
    shown = Page(write_report(str(make_run(tmp_path, bundle=bundle))))
    assert "<span>accuracy</span></th><td>0.500</td><td>0.400 to 0.600</td>" in shown.source
    assert "<span>AUC</span></th><td>0.988</td><td>–</td>" in shown.source
    assert HOSTILE not in shown.source
    assert "What is known of this classifier" not in page.source


def test_facts_equal_the_tables(labelled_run: Path) -> None:
    facts = gather(str(labelled_run))
    scores = pq.read_table(labelled_run / "scores").to_pandas()
    assert facts.num_listed == 80
    assert facts.num_scored == len(scores) == 78
    assert facts.num_quarantined == 2
    assert facts.num_missing == 0
    assert facts.num_review == scores["needs_review"].sum()
    assert facts.confidence.sum() == 78
    assert facts.confidence_review.sum() == facts.num_review
    assert dict(zip(CLASSES, facts.class_counts, strict=True)) == {
        name: (scores["predicted_class"] == name).sum() for name in CLASSES
    }
    least = scores.sort_values(["confidence", "image_uri"])["image_uri"][:CELLS_SHOWN]
    assert [cell.image_uri for cell in facts.least_certain] == list(least)
    assert facts.evaluation is not None
    right = (scores["label"] == scores["predicted_class"]).mean()
    assert facts.evaluation.accuracy.value == pytest.approx(right)


def test_report_is_one_file_that_runs_and_loads_nothing(page: Page) -> None:
    policies = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    ]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "a", "form"}
    for _, attributes in page.tags:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("src") or "data:").startswith("data:image/jpeg;base64,") or (
            "src" not in attributes
        )


def test_names_are_escaped(page: Page) -> None:
    assert not [c for c in page.source if not (c.isprintable() or c == "\n")]
    assert "<script>alert(1)</script>\\x1b[31m\\u202e'\"&" in page.text


def test_report_says_what_it_must(page: Page) -> None:
    for sentence in (
        "Complete.",
        "For research use. This report supports a person who decides",
        "No check was made whether these images look like those it learnt from",
        "Of 80 images listed, 78 (97.5 %) were classified, 2 could not be read",
        ["123", "images", "per", "second"][0],
        "1 min 15 s",
        "sha256:abc",
        "tf_efficientnet_lite0",
        "Precision",
        "Calibration",
        "too large",
        "undecodable",
    ):
        assert sentence in page.text, sentence
    assert len(page.all("img")) == CELLS_SHOWN
    assert "can no longer be read" not in page.text


SITE = SiteProfile(
    bundle_digest="sha256:0", standing="elsewhere", distance=10.07, threshold=1.07, num_images=200
)


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (replace(SITE, crop=1.58), "Pictures from another lab"),
        (replace(SITE, standing="home", distance=0.4), "look like those the model learned from"),
        (replace(SITE, standing="unknown"), "Not compared with the model's own lab."),
    ],
)
def test_where_pictures_come_from_stands_at_the_very_top(
    site: SiteProfile, said: str, tmp_path: Path
) -> None:
    record = site.to_dict() | {"uri": "auto", "sentence": f"{site.sentence} {HOSTILE}"}
    page = Page(write_report(str(make_run(tmp_path, site=record, with_images=False))))
    assert site.sentence in page.text
    assert page.text.index(said) < page.text.index("bloodcells · report of a run")
    alarms = [a for a in page.all("div") if a.get("role") == "alert"]
    assert len(alarms) == (site.standing == "elsewhere")
    assert "Not checked" not in page.text
    assert ("seen with crop × 1.58" in page.text) == (site.crop != 1)
    assert "<script>alert" not in page.source


def test_a_run_that_did_not_ask_says_so(tmp_path: Path, page: Page) -> None:
    asked = Page(write_report(str(make_run(tmp_path, settings={"site": "none"}))))
    assert "--site none did not ask for it" in asked.text
    assert "--site none" not in page.text, "an old run had no choice"
    for one in (asked, page):
        assert "Not checked: does the classifier know cells like these?" in one.text
        assert not [a for a in one.all("div") if a.get("role") == "alert"]


def test_images_of_no_cell_type_are_counted_and_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path, slides=("a", "b", "c"), aliens=10)
    facts = gather(str(run))
    scores = pq.read_table(run / "scores").to_pandas()
    scores = scores[scores["out_of_domain"]].sort_values("confidence", ascending=False)
    assert facts.num_out_of_domain == len(scores) == 30
    assert [cell.image_uri for cell in facts.alien] == list(scores["image_uri"][:CELLS_SHOWN])
    page = Page(write_report(str(run)))
    assert "30 images of no cell type that the classifier knows" in page.text
    assert f"{CELLS_SHOWN} of the 30 images that look to the classifier like none" in page.text
    assert "10 of no known cell type" in page.text
    assert len(page.all("img")) == 2 * CELLS_SHOWN


def test_no_section_where_no_image_is_out_of_domain(page: Page) -> None:
    assert "no known cell type" not in page.text


def test_kept_cells_are_those_that_nobody_is_asked_about(tmp_path: Path) -> None:
    run = make_run(tmp_path, slides=("a", "b"), images_a_slide=150, aliens=9, with_images=False)
    found = gather(str(run)).selective
    assert found is not None
    scores = pq.read_table(run / "scores").to_pandas()
    wrong = (scores["label"] != scores["predicted_class"]).to_numpy()
    kept = ~scores["needs_review"].to_numpy()
    assert (found.num_labelled, found.num_alien) == (298, 18)
    assert (found.num_kept, found.num_wrong) == (kept.sum(), (wrong & kept).sum())
    # Beta's quantile is where k errors or fewer have 5 % probability.
    most = found.error_at_most
    assert binom.cdf(found.num_wrong, found.num_kept, most) == pytest.approx(0.05)
    known = ~scores["out_of_domain"].to_numpy()
    assert found.coverage[-1] == pytest.approx(known.mean())
    assert found.risk[-1] == pytest.approx(wrong[known].mean())
    assert (np.diff(found.coverage) > 0).all()
    confidence = scores["confidence"].to_numpy()
    for share, error in zip(found.coverage[::20], found.risk[::20], strict=True):
        limit = np.sort(confidence[known])[::-1][round(share * len(scores)) - 1]
        sure = known & (confidence >= limit)
        assert wrong[sure].mean() == pytest.approx(error)
    page = Page(write_report(str(run)))
    assert f"No person is asked to look at {kept.sum()} of the 298 labelled cells" in page.text
    assert f"with 95 % confidence at most {100 * most:.2f} %" in page.text
    assert "18 of them because they are like no cell type" in page.text
    assert [svg for svg in page.all("svg") if "of this run" in str(svg.get("aria-label"))]


@pytest.mark.parametrize(("total", "most"), [(0, 1.0), (1, 0.95), (3, 0.6316), (100, 0.02951)])
def test_bound_where_nothing_is_wrong(total: int, most: float) -> None:
    assert at_most(0, total) == pytest.approx(most, rel=1e-3)  # 1 - 0.05 ** (1 / total)
    assert at_most(total, total) == 1.0


def test_curve_where_nothing_is_kept() -> None:
    tally = SelectiveTally()
    assert tally.selective() is None
    yes, sure = np.ones(3, bool), np.array([1.0, 0.5, 0.125], np.float32)
    tally.add(yes, sure, yes, yes)
    found = tally.selective()
    assert found is not None
    assert len(found.coverage) == found.num_kept == 0 and found.error_at_most == 1.0
    assert "of this run" not in risk_coverage(found)
    tally.add(~yes, sure, ~yes, ~yes)
    found = tally.selective()
    assert found is not None
    assert list(found.coverage) == [1 / 6, 2 / 6, 3 / 6] and not found.risk.any()
    assert "50.0 % kept, 0.00 % of them wrong, at most 63.16 %" in risk_coverage(found)


def test_report_is_accessible(page: Page) -> None:
    for tag in ("svg", "img"):
        for attributes in page.all(tag):
            assert (
                attributes.get("aria-label")
                or attributes.get("aria-hidden")
                or (attributes.get("alt"))
            )
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        assert attributes.get("aria-labelledby", ids[0]) in ids


def test_same_run_gives_the_same_report(labelled_run: Path, page: Page) -> None:
    assert Path(write_report(str(labelled_run))).read_text("utf-8") == page.source


def test_thumbnails_show_the_right_cells(labelled_run: Path) -> None:
    cells = gather(str(labelled_run)).least_certain
    found = fetch(str(labelled_run), {cell.image_uri: cell.shard_id for cell in cells})
    assert found == {cell.image_uri: Path(cell.image_uri).read_bytes() for cell in cells}


@pytest.mark.parametrize("kind", ["folder", "tar", "targz", "zip", "parquet", "npz"])
def test_single_images_come_back_from_every_kind_of_store(kind: ShardKind, tmp_path: Path) -> None:
    pictures = [
        ImageFile(name=f"{i}.jpg", data=encode_jpeg(draw_cell(name, i, size_px=48)), label=name)
        for i, name in enumerate(CLASSES)
    ]
    suffix = {"folder": "", "targz": ".tar.gz"}.get(kind, f".{kind}")
    store = write_archive(tmp_path / f"store{suffix}", pictures, kind)
    shards = [
        item
        for source in open_store(str(store)).sources()
        for item in plan_source(source, shard_size=5)
        if isinstance(item, Shard)
    ]
    run = tmp_path / "run"
    (run / "plan").mkdir(parents=True)
    (run / "plan" / "part-00000.parquet").write_bytes(publish.plan_bytes(shards))
    records = {r.member.image_uri: (s.shard_id, r.data) for s in shards for r in read_shard(s)}
    asked = sorted(records)[1::3]
    found = fetch(str(run), {uri: records[uri][0] for uri in asked})
    assert sorted(found) == asked
    for uri in asked:
        assert np.array_equal(found[uri], records[uri][1])


def test_without_labels_there_is_no_comparison(tmp_path: Path) -> None:
    page = Page(write_report(str(make_run(tmp_path, labelled=False))))
    assert "Against the labels" not in page.text
    assert "Where a label is known" not in page.text


def test_images_that_are_gone_leave_a_placeholder(tmp_path: Path) -> None:
    page = Page(write_report(str(make_run(tmp_path, with_images=False))))
    assert not page.all("img")
    assert page.text.count("The image can no longer be read") == CELLS_SHOWN


def test_incomplete_run_says_so_first(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        unfinished=1,
        source_problems=[{"uri": "torn.tar", "detail": "ends in the middle of a member"}],
        missing=[{"shard_id": "x", "error": "the store did not answer"}],
    )
    page = Page(write_report(str(run)))
    assert "Of 80 images listed, 39 (48.8 %) were classified" in page.text
    assert "40 of 80 images (1 of 2 shards) have no result yet" in page.text
    assert "Run the same command again: it goes on where it stopped" in page.text
    assert "the store did not answer" in page.text
    assert "torn.tar : ends in the middle of a member" in page.text
    assert page.text.index("Incomplete.") < page.text.index("In numbers")
    assert gather(str(run)).num_quarantined == 1, "quarantine of an unfinished shard is not final"


def test_parts_of_another_plan_do_not_count(labelled_run: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    foreign = next((labelled_run / "scores").iterdir())
    (run / "scores" / "part-ffffffffffffffff.parquet").write_bytes(foreign.read_bytes())
    assert gather(str(run)).num_scored == 78


def test_many_slides_are_cut_short_with_a_note(tmp_path: Path) -> None:
    slides = [f"slide-{i:03d}" for i in range(SLIDES_SHOWN + 3)]
    page = Page(write_report(str(make_run(tmp_path, slides=slides[::-1], images_a_slide=3))))
    assert "The first 50 of 53 slides by name" in page.text
    assert "<h3><bdi>slide-049<" in page.source
    assert "<h3><bdi>slide-050<" not in page.source


def test_slide_without_white_cells(tmp_path: Path) -> None:
    page = Page(write_report(str(make_run(tmp_path, slides=["empty"], images_a_slide=1))))
    assert "No white cell was found on this slide" in page.text


def test_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "planning"}')
    page = Page(write_report(str(tmp_path)))
    assert "No image has been listed yet" in page.text
    assert "Not finished." in page.text


def test_run_folder_that_was_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path, counts={"scored": 99, "quarantined": 2})
    assert "The run folder was changed." in Page(write_report(str(run))).text


def test_job_writes_the_report(labelled_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(labelled_run)]) == 0
    assert str(labelled_run / "report.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "it has no run.json"), ("{", "is not valid JSON"), ("[]", "does not hold a JSON")],
)
def test_job_refuses_what_is_no_run(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert main(["--run", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert str(tmp_path) in error


def test_damaged_score_file_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    part = sorted((run / "scores").iterdir())[0]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(RunError, match=re.escape(str(part))):
        write_report(str(run))
