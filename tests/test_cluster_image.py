"""The image: what its Containerfile says, and as much of it as runs without an engine."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Final

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cluster_files import (
    CLUSTER,
    MANIFESTS,
    ROOT,
    documents,
    everything,
    linter,
    require_understood,
)

REGISTRY: Final = "registry.example/bloodcells"


def instructions() -> list[tuple[str, str]]:
    """Return the Containerfile's instructions, each with what follows it on one line."""
    text = (CLUSTER / "Containerfile").read_text()
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.M))
    lines = [line.strip() for line in joined.splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def of_kind(name: str) -> list[str]:
    return [rest for kind, rest in instructions() if kind == name]


def final_stage() -> list[tuple[str, str]]:
    made = instructions()
    last = max(number for number, (kind, _) in enumerate(made) if kind == "FROM")
    return made[last:]


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_the_base_is_pinned() -> None:
    defaults = dict(rest.split("=", 1) for rest in of_kind("ARG"))
    for image in of_kind("FROM"):
        assert image.split()[0] == "${BASE}"
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-\w+", defaults["BASE"])
    assert defaults["DEVICE"] == "cpu"


def test_all_that_is_copied_is_there_and_may_come_in() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert ignored[1] == "*"
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    for rest in of_kind("COPY"):
        *sources, _ = [word for word in rest.split() if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), f"nothing to copy: {source}"
            assert source in let_in, f".dockerignore keeps {source} out"


def test_hadolint_has_nothing_to_say() -> None:
    command = [linter("hadolint"), str(CLUSTER / "Containerfile")]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.stdout + said.stderr == ""


def test_it_runs_as_somebody() -> None:
    kinds = [kind for kind, _ in final_stage()]
    assert [rest for kind, rest in final_stage() if kind == "USER"] == ["1000:1000"]
    assert "RUN" not in kinds[kinds.index("USER") :]
    assert any("useradd --uid 1000" in rest for rest in of_kind("RUN"))


def test_its_command_is_understood() -> None:
    [command] = of_kind("CMD")
    require_understood(" ".join(yaml.safe_load(command)))


def test_ray_s_launcher_finds_what_it_looks_for() -> None:
    installed = " ".join(of_kind("RUN"))
    for tool in ("openssh-client", "rsync", "boto3"):
        assert tool in installed
    assert any("HOME=/home/bloodcells" in rest for rest in of_kind("ENV"))


def test_nothing_secret_and_nothing_unpinned_goes_in() -> None:
    for rest in [*of_kind("ENV"), *of_kind("ARG")]:
        assert not re.search(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY", rest)
    for rest in of_kind("RUN"):
        for call in re.findall(r"pip install (.*?)(?:&&|;;|$)", rest):
            assert re.search(r"--constraint constraints\.txt|==|\.whl", call), call


def test_every_package_of_the_image_is_pinned() -> None:
    """Whatever the project needs, and what that needs, has a version in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    left = [Requirement(text) for text in [*project["dependencies"], "boto3"]]
    versions, seen = pinned(), set()
    while left:
        wanted = left.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        assert key[0] in versions, f"constraints.txt has no version of {wanted.name}"
        for text in importlib.metadata.requires(wanted.name) or ():
            needed = Requirement(text)
            extras = [*wanted.extras, ""]
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                left.append(needed)


def test_what_the_image_holds_runs(tmp_path: Path) -> None:
    """Without an engine: the wheel is built, folders are copied, and the command is run there."""
    source, app, packages = tmp_path / "source", tmp_path / "app", tmp_path / "packages"
    for folder in ("bloodcells", "jobs", "serve", "cluster"):
        place = source if folder == "bloodcells" else app
        shutil.copytree(
            ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__", "build")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    [build] = [rest for rest in of_kind("RUN") if rest.startswith("pip wheel")]
    words = build.replace("/wheels", str(tmp_path / "wheels")).split()
    python(*("-m", *words), cwd=source)
    [wheel] = (tmp_path / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as packed:
        held = set(packed.namelist())
        packed.extractall(packages)
    ours = [path for path in (ROOT / "bloodcells").rglob("*") if path.is_file()]
    expected = {str(path.relative_to(ROOT)) for path in ours if "__pycache__" not in path.parts}
    assert expected <= held
    paths = f"{app}:{packages}"  # before an editable installation of this checkout
    found = python("-c", "import bloodcells; print(bloodcells.__file__)", cwd=app, paths=paths)
    assert found.strip() == str(packages / "bloodcells" / "__init__.py")
    [command] = of_kind("CMD")
    _, *arguments = yaml.safe_load(command)
    assert "usage: python -m jobs.score" in python(*arguments, cwd=app, paths=paths)


def python(*arguments: str, cwd: Path, paths: str = "") -> str:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def images() -> list[str]:
    aws = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    manifests = [document for path in MANIFESTS for document in documents(path)]
    both = [aws, *manifests]
    return [*everything(both, "image"), *everything(both, "worker_image")]


def test_every_image_is_one_that_the_containerfile_builds() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    built = {f"{REGISTRY}:{version}-cpu", f"{REGISTRY}:{version}-gpu"}
    assert set(images()) == built
    for text in ((CLUSTER / "README.md").read_text(), (CLUSTER / "Containerfile").read_text()):
        assert set(re.findall(rf"{REGISTRY}:\S+", text)) == built
    assert any(f'version="{version}"' in rest for rest in of_kind("LABEL"))
