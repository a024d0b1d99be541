"""The job that compares a lab with the model's own: what it writes, shows, says and refuses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import jobs.site
from bloodcells import site_search, storage
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.errors import StorageFullError
from bloodcells.imaging import Preprocess
from bloodcells.report.site import CELLS_SHOWN, SeenCell, SiteFacts, write_site
from bloodcells.scoring import Scorer
from bloodcells.site_search import make_profile, mean_confidence, outputs_of
from bloodcells.sites import HomeReference, SiteProfile, measure_all
from bloodcells.sites.sample import chosen_first
from bloodcells.stores import open_store
from bloodcells.synthetic import ImageFile, Stain, draw_cell, encode_jpeg, write_archive
from bloodcells.verdicts import judge
from jobs.site import main
from tests.run_folders import HOSTILE
from tests.s3 import S3Server
from tests.test_report import Page

YELLOW = Stain(gain=(0.7, 0.7, 0.7), plasma=(215.0, 200.0, 140.0))


def cells(count: int, seed: int, stain: Stain | None = None) -> list[ImageFile]:
    names = [CLASSES[i % len(CLASSES)] for i in range(count)]
    return [
        ImageFile(
            name=f"{seed + i}.jpg",
            data=encode_jpeg(draw_cell(name, seed + i, size_px=96, stain=stain)),
            label=name,
        )
        for i, name in enumerate(names)
    ]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stores")
    write_archive(root / "home.tar", cells(48, 0), "tar")
    write_archive(root / "own", cells(32, 100), "folder")
    write_archive(root / "yellow.zip", cells(32, 200, YELLOW), "zip", labelled=False)
    write_archive(root / "few", cells(5, 300), "folder")
    (root / "texts").mkdir()
    (root / "texts" / "notes.txt").write_text("no picture")
    (root / "broken").mkdir()
    for i in range(3):
        (root / "broken" / f"{i}.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return root


@pytest.fixture(scope="module")
def bundle(stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, as if drawn cells were its home."""
    measures = measure_all([cell.data for cell in cells(80, 1000)])
    labels = np.arange(len(measures)) % len(CLASSES)
    home = HomeReference.learn(measures, labels)
    folder = tmp_path_factory.mktemp("bundle")
    replace(ModelBundle.load(shipped_bundle_uri()), home=home).save(str(folder))
    return folder


@pytest.fixture(scope="module")
def elsewhere(stores: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "yellow"
    given = ["--store", str(stores / "yellow.zip"), "--beside", str(stores / "own")]
    assert main([*given, "--bundle", str(bundle), "--out", str(out)]) == 0
    return out


def test_another_lab_is_told_and_shown(elsewhere: Path, bundle: Path) -> None:
    profile = SiteProfile.load(str(elsewhere))
    profile.require_made_for(ModelBundle.load(str(bundle)).digest, "")
    assert profile.standing == "elsewhere"
    assert profile.num_images == 32
    page = Page(str(elsewhere / "report.html"))
    assert page.text.index("Pictures from another lab") < page.text.index("bloodcells ·")
    assert profile.sentence in page.text
    assert f"distance from the training lab {profile.distance:.2f}" in page.text
    pairs = 1 if profile.crop == profile.density == 1 else 2
    assert len(page.all("img")) == (pairs + 1) * CELLS_SHOWN
    assert "background, blue, grey levels" in page.text
    assert f"--site {elsewhere} --out RUN" in page.text
    assert "Are these the training lab's?" not in page.text
    assert "of the same classes as given to this lab's" in page.text


def test_report_is_one_file_that_loads_nothing(elsewhere: Path) -> None:
    page = Page(str(elsewhere / "report.html"))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "a", "form"}
    assert len(page.all("caption")) == len(page.all("table"))
    for _, attributes in page.tags:
        assert "style" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
    for picture in page.all("img"):
        assert picture["alt"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_what_a_profile_changes_is_said_and_shown(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    profile = SiteProfile(
        bundle_digest="sha256:0",
        crop=1.58,
        density=0.8333,
        network="elsewhere",
        temperature=1.5,
        strange_above=7.25,
        standing="elsewhere",
        distance=10.07,
        threshold=1.07,
        num_images=200,
    )
    pixels = rng.integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    before, after = (
        SeenCell(pixels=one, predicted_class=name, confidence=0.87, out_of_domain=alien)
        for one, name, alien in zip(
            pixels, ("immature_granulocyte", "monocyte"), (False, True), strict=True
        )
    )
    centre, spread = np.linspace(5, 6, 7), np.full(7, 0.1)
    facts = SiteFacts(
        stores=[f"/a/{HOSTILE}"],
        bundle_uri=HOSTILE,
        model_name="m",
        preprocess=Preprocess(crop=0.65),
        profile=profile,
        home=HomeReference(centre=centre, spread=spread, threshold=1.07, num_images=1200),
        here=centre - 0.12,
        cells=[(before, after)],
        beside=None,
    )
    write_site(str(tmp_path), facts)
    assert SiteProfile.load(str(tmp_path)) == profile
    page = Page(str(tmp_path / "report.html"))
    assert "smaller (crop × 1.58) and with weaker stain (density × 0.83)" in page.text
    assert "Its confidence is taken down (temperature × 1.50)" in page.text
    assert "limit of strangeness here 7.25" in page.text
    assert "a network of its own for pictures of other labs, and that one sees them" in page.text
    assert [picture["alt"] for picture in page.all("img")] == [
        "this lab, before: given as immature granulocyte",
        "this lab, after: given as monocyte",
    ]
    assert page.text.count("no cell type that it knows") == 1
    assert "−1.2" in page.text, "spreads apart"
    assert not [c for c in page.source if not (c.isprintable() or c == "\n")]
    assert "<script>alert" not in page.source


def test_home_changes_nothing_and_is_quiet(
    stores: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--store", str(stores / "home.tar"), "--bundle", str(bundle)]
    assert main([*given, "--out", str(tmp_path / "one")]) == 0
    printed = capsys.readouterr().out
    profile = SiteProfile.load(str(tmp_path / "one"))
    assert profile.standing == "home" and profile.changes_nothing
    assert profile.sentence in printed
    assert str(tmp_path / "one" / "site.json") in printed
    page = Page(str(tmp_path / "one" / "report.html"))
    assert "Pictures from another lab" not in page.text
    assert "The training lab's light and stain" in page.text, "no store of it was named"
    assert len(page.all("img")) == CELLS_SHOWN
    assert main([*given, "--out", str(tmp_path / "two")]) == 0
    for name in ("site.json", "report.html"):
        one, two = ((tmp_path / folder / name).read_text() for folder in ("one", "two"))
        assert one.replace(str(tmp_path / "one"), "") == two.replace(str(tmp_path / "two"), "")


def test_a_store_that_is_not_the_training_labs_is_noticed(
    stores: Path, bundle: Path, tmp_path: Path
) -> None:
    given = ["--store", str(stores / "home.tar"), "--beside", str(stores / "yellow.zip")]
    assert main([*given, "--bundle", str(bundle), "--out", str(tmp_path)]) == 0
    assert "Are these the training lab's?" in Page(str(tmp_path / "report.html")).text


def test_another_lab_is_seen_by_the_network_for_other_labs(bundle: Path) -> None:
    """What is usual is measured in that network, and softened as that one needs it."""
    given = ModelBundle.load(str(bundle))
    small = replace(given, preprocess=replace(given.preprocess, size=64), elsewhere=None)
    weights = {name: t * 1.02 if t.ndim > 1 else t for name, t in small.state_dict.items()}
    cooler = replace(small.calibration, temperature=0.8 * small.calibration.temperature)
    alone = replace(small, state_dict=weights, calibration=cooler)
    pictures = [cell.data for cell in cells(24, 200, YELLOW)]
    profile = make_profile(pictures, replace(small, elsewhere=alone))
    assert (profile.network, profile.temperature) == ("elsewhere", pytest.approx(0.8 * 1.5))
    by_itself = make_profile(pictures, alone)
    assert (by_itself.network, by_itself.temperature) == ("home", 1.5)
    for name in ("crop", "density", "statistics", "strange_above"):
        assert getattr(profile, name) == getattr(by_itself, name)
    assert make_profile([cell.data for cell in cells(24, 100)], small).network == "home"


def test_crops_are_tried_with_the_confidence_that_the_profile_states(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def watched(images: Sequence[bytes], scorer: Scorer) -> float:
        assert scorer.site is not None
        sure = mean_confidence(images, scorer)
        outputs = outputs_of(images, scorer)
        said = judge(outputs, scorer.bundle.calibration.at(scorer.site)).confidence
        assert sure == pytest.approx(float(said.mean()), abs=1e-6)
        colder = judge(outputs, scorer.bundle.calibration).confidence
        assert sure < colder.mean() - 0.01
        tried.append((sure, scorer.site))
        return sure

    monkeypatch.setattr(site_search, "mean_confidence", watched)
    given = ModelBundle.load(str(bundle))
    small = replace(given, preprocess=replace(given.preprocess, size=64), elsewhere=None)
    profile = make_profile([cell.data for cell in cells(24, 200, YELLOW)], small)
    assert profile.temperature == 1.5
    assert {site.temperature for _, site in tried} == {1.5}
    best = max((sure, site.crop) for sure, site in tried if site.density == 1)
    assert profile.crop == best[1]


@pytest.mark.parametrize("knows_home", [True, False])
def test_where_nothing_can_be_said_it_says_so(
    knows_home: bool,
    stores: Path,
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not knows_home:
        replace(ModelBundle.load(str(bundle)), home=None).save(str(tmp_path / "bundle"))
        bundle = tmp_path / "bundle"
    out = tmp_path / "out"
    given = ["--store", str(stores / ("few" if knows_home else "own"))]
    assert main([*given, "--bundle", str(bundle), "--out", str(out)]) == 0
    profile = SiteProfile.load(str(out))
    assert profile.standing == "unknown" and profile.changes_nothing
    why = "Fewer than 20 pictures" if knows_home else "does not know what its own lab"
    assert why in capsys.readouterr().out
    page = Page(str(out / "report.html"))
    assert "Not compared with the model's own lab." in page.text
    assert "This lab's colours" in page.text or knows_home


def test_the_profile_comes_last(
    stores: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = storage.put

    def full(uri: str, data: bytes) -> None:
        if uri.endswith("site.json"):
            assert (tmp_path / "out" / "report.html").exists()
            raise StorageFullError(f"{uri}: no space is left")
        put(uri, data)

    flags = ["--store", str(stores / "few"), "--bundle", str(bundle)]
    flags += ["--out", str(tmp_path / "out")]
    for _ in range(2):  # into a new folder, and into one that holds a profile
        with monkeypatch.context() as trouble:
            trouble.setattr(storage, "put", full)
            assert main(flags) == 1
        assert not (tmp_path / "out" / "site.json").exists()
        assert main(flags) == 0  # the report that was left is known for its own


@pytest.mark.parametrize(
    ("store", "flags", "message"),
    [
        ("texts", [], "can be read; name a store of images with --store"),
        ("broken", [], "can be decoded (1 tried); name a store of images with --store"),
        ("nowhere", [], "does not exist; check --store"),
        ("few", ["--beside", "nowhere"], "does not exist; check --beside"),
        ("few", ["--bundle", "nowhere"], "there is no model bundle at"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(
    store: str,
    flags: Sequence[str],
    message: str,
    stores: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    assert main(["--store", str(stores / store), *flags, "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert not out.exists()


def test_stores_and_profiles_on_s3(
    stores: Path, bundle: Path, s3: S3Server, tmp_path: Path
) -> None:
    store = storage.join(f"{s3.uri}/site", "home.tar")
    storage.put(store, (stores / "home.tar").read_bytes())
    there = storage.join(f"{s3.uri}/site", "out")
    for where, out in ((store, there), (str(stores / "home.tar"), str(tmp_path))):
        assert main(["--store", where, "--bundle", str(bundle), "--out", out]) == 0
    assert SiteProfile.load(there) == SiteProfile.load(str(tmp_path))
    assert storage.exists(storage.join(there, "report.html"))


@pytest.mark.parametrize("flag", ["--store", "--beside"])
def test_nothing_is_written_among_images(
    flag: str, stores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"--store": stores / "few", "--beside": stores / "own"}
    given = [str(word) for pair in named.items() for word in pair]
    out = named[flag] / "site"
    assert main([*given, "--out", str(out)]) == 1
    assert f"{flag} {named[flag]} lie one in the other" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("names", [("run.json", "site.json", "report.html"), ("report.html",)])
def test_a_folder_with_another_report_is_left_alone(
    names: Sequence[str], stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        (tmp_path / name).write_text("of another")
    assert main(["--store", str(stores / "few"), "--out", str(tmp_path)]) == 1
    assert f"holds a {names[0]} that is no site profile's" in capsys.readouterr().err
    assert {path.read_text() for path in tmp_path.iterdir()} == {"of another"}


def test_of_a_large_store_some_shards_are_chosen_by_their_ids(
    stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store([str(stores / name) for name in ("few", "home.tar", "own", "yellow.zip")])
    every = jobs.site._sampled_shards(store)
    ordered = sorted(every, key=lambda shard: chosen_first(shard.shard_id))
    assert every == ordered and sum(len(shard.members) for shard in every) == 117
    first = len(ordered[0].members)
    for most, count in ((1, 1), (first, 1), (first + 1, 2)):
        monkeypatch.setattr(jobs.site, "MOST_READ", most)
        assert jobs.site._sampled_shards(store) == ordered[:count]


def test_the_flags_are_what_the_documents_say(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    flags = set(re.findall(r"--[a-z]+", capsys.readouterr().out))
    assert flags >= {"--store", "--out", "--bundle", "--beside"}
