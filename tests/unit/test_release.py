"""``scripts/release``: what is built can be installed and used, and the bill of materials is what the pins say."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import air_executor
from tests.support.airflow_env import REPOSITORY

VERSION = air_executor.__version__


@pytest.fixture(scope="module")
def release() -> Iterator[ModuleType]:
    sys.path.insert(0, str(REPOSITORY / "scripts"))
    try:
        yield importlib.import_module("release")
    finally:
        sys.path.remove(str(REPOSITORY / "scripts"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel, sdist and the rest, after both were installed into fresh environments and used there."""
    folder = tmp_path_factory.mktemp("release")
    command = [sys.executable, "scripts/release.py", "--out", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "dry: no tag was made" in done.stdout
    return folder


def test_a_release_has_its_files_with_their_checksums(built: Path) -> None:
    names = {path.name for path in built.iterdir()}
    bom, wheel = f"air-executor-{VERSION}.cdx.json", f"air_executor-{VERSION}-py3-none-any.whl"
    assert names == {"SHA256SUMS", bom, wheel, f"air_executor-{VERSION}.tar.gz"}
    sums = dict(reversed(line.split()) for line in (built / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256((built / name).read_bytes()).hexdigest() for name in names - {"SHA256SUMS"}}


def test_the_bill_has_each_dependency_as_the_pins_have_it(built: Path) -> None:
    bom = json.loads((built / f"air-executor-{VERSION}.cdx.json").read_text())
    assert (bom["bomFormat"], bom["metadata"]["component"]["version"]) == ("CycloneDX", VERSION)
    parts = {each["name"]: each for each in bom["components"]}
    pins = (REPOSITORY / "constraints" / "airflow-3.3.txt").read_text()
    for name, part in parts.items():
        assert re.search(rf"^{re.escape(name)}(\[.*\])?=={re.escape(part['version'])}( |$)", pins, re.MULTILINE), name
    assert parts["psutil"]["scope"] == "required"
    assert parts["apache-airflow"]["scope"] == "optional"
    assert "pytest" not in parts
    refs = {each["bom-ref"] for each in (*bom["components"], bom["metadata"]["component"])}
    assert {each["ref"] for each in bom["dependencies"]} == refs
    assert {need for each in bom["dependencies"] for need in each["dependsOn"]} <= refs


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


READY = "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-11-26\n\n### Added\n\n- All.\n"


@pytest.fixture
def project(release: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "CHANGELOG.md").write_text(READY)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "all")
    monkeypatch.setattr(release, "REPOSITORY", tmp_path)
    return tmp_path


def test_a_commit_is_ready_when_its_changelog_has_the_version(release: ModuleType, project: Path) -> None:
    assert release.unready("1.2.0") == []
    assert release.unready("1.3.0") == ["CHANGELOG.md needs a section '## [1.3.0] - DATE'"]


def test_a_commit_is_not_ready_while_something_is_unreleased_or_uncommitted(release: ModuleType, project: Path) -> None:
    (project / "CHANGELOG.md").write_text(READY.replace("## [Unreleased]\n", "## [Unreleased]\n\n- More.\n"))
    said = release.unready("1.2.0")
    assert [each.split(":")[0] for each in said] == [
        "CHANGELOG.md has changes under Unreleased",
        "commit what was changed",
    ]


def test_a_tag_and_the_version_have_to_agree(release: ModuleType, project: Path) -> None:
    git(project, "tag", "v1.2.0")
    assert release.unready("1.2.0") == []
    git(project, "tag", "--delete", "v1.2.0")
    git(project, "tag", "v1.1.0")
    assert release.unready("1.2.0") == ["this commit is tagged v1.1.0, and the package says 1.2.0"]


def test_a_version_is_released_once(release: ModuleType, project: Path) -> None:
    git(project, "tag", "v1.2.0")
    git(project, "commit", "--quiet", "--allow-empty", "--message", "more")
    assert release.unready("1.2.0") == ["v1.2.0 is another commit: raise __version__"]
