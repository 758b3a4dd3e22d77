"""The part of scripts/release that needs Python: builds wheel and sdist, installs and tries them, writes the SBOM."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

from packaging.metadata import Metadata
from sbom import sbom

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "air_executor"

#: What an sdist needs beside the package, to be built, read and understood.
IN_SDIST = ("CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md", "docs/index.md", "pyproject.toml")

#: How long a command of an installed package may take, in seconds.
_COMMAND_S = 120.0


class NotGoodError(Exception):
    """Something about what was built is wrong."""


def main() -> int:
    """Build and check, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/release", description="Build a release and check it. Upload nothing."
    )
    parser.add_argument("--tag", action="store_true", help="make the tag, in this clone only")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "release", help="where to build")
    args = parser.parse_args()
    version = package_version()
    missing = unready(version)
    try:
        built = build(args.out)
        check_wheel(built["wheel"], version)
        check_sdist(built["sdist"], version)
        for archive in built.values():
            try_installed(archive, version)
    except NotGoodError as error:
        print(f"scripts/release: {error}", file=sys.stderr)
        return 1
    bom = args.out / f"air-executor-{version}.cdx.json"
    bom.write_text(sbom(version, REPOSITORY / "constraints" / "airflow-3.3.txt", _commit_time()), encoding="utf-8")
    write_checksums(args.out)
    for path in sorted(args.out.iterdir()):
        print(path)
    for each in missing:
        print(f"before a release: {each}")
    if not args.tag:
        print("dry: no tag was made")
        return 0
    if missing:
        return 1
    _git("tag", "--annotate", "--message", f"AirExecutor {version}", f"v{version}")
    print(f"tagged v{version}; push it, and upload the files")
    return 0


def package_version() -> str:
    """Return the version that the package has in this folder."""
    text = (REPOSITORY / PACKAGE / "__init__.py").read_text(encoding="utf-8")
    [version] = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(version)


def unready(version: str) -> list[str]:
    """Return what keeps this commit from being the release of a version."""
    missing = []
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE):
        missing.append(f"CHANGELOG.md needs a section '## [{version}] - DATE'")
    unreleased = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## )", changes, re.DOTALL | re.MULTILINE)
    if unreleased and unreleased[1].strip():
        missing.append("CHANGELOG.md has changes under Unreleased: raise __version__, and move them to its section")
    if _git("status", "--porcelain"):
        missing.append("commit what was changed")
    tags = _git("tag", "--points-at", "HEAD").split()
    if tags and f"v{version}" not in tags:
        missing.append(f"this commit is tagged {', '.join(tags)}, and the package says {version}")
    elif not tags and _git("tag", "--list", f"v{version}"):
        missing.append(f"v{version} is another commit: raise __version__")
    return missing


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout.strip()


def _commit_time() -> int:
    """Return when this commit was made, in seconds since the epoch: the same commit gives the same files."""
    return int(_git("log", "-1", "--format=%ct"))


def build(folder: Path) -> dict[str, Path]:
    """Build wheel and sdist into a folder, which is emptied before, and return their paths."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder.resolve())]
    _call(command, REPOSITORY, {"SOURCE_DATE_EPOCH": str(_commit_time())})
    [wheel], [sdist] = list(folder.glob("*.whl")), list(folder.glob("*.tar.gz"))
    return {"wheel": wheel, "sdist": sdist}


def check_wheel(path: Path, version: str) -> None:
    """Check that a wheel has all of the package and nothing else, and that its metadata is valid.

    :raises NotGoodError: it is not so; the message says what.
    """
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        info = f"{PACKAGE}-{version}.dist-info/"
        text = wheel.read(f"{info}METADATA").decode()
    tracked = {name for name in _git("ls-files", PACKAGE).splitlines() if (REPOSITORY / name).exists()}
    found = {name for name in names if not name.startswith(info)}
    if lacking := sorted(tracked - found):
        raise NotGoodError(f"{path.name} lacks {', '.join(lacking)}")
    if extra := sorted(found - tracked):
        raise NotGoodError(f"{path.name} has what git does not know: {', '.join(extra)}")
    metadata = Metadata.from_email(text, validate=True)
    if (metadata.name, str(metadata.version)) != ("air-executor", version):
        raise NotGoodError(f"{path.name} says that it is {metadata.name} {metadata.version}")


def check_sdist(path: Path, version: str) -> None:
    """Check that an sdist has what it needs, below one folder, and no link.

    :raises NotGoodError: it is not so; the message says what.
    """
    with tarfile.open(path) as sdist:
        members = sdist.getmembers()
    top = f"{PACKAGE}-{version}/"
    strange = [each.name for each in members if not (each.name.startswith(top) and (each.isfile() or each.isdir()))]
    if strange:
        raise NotGoodError(f"{path.name} has {', '.join(strange)}")
    names = {each.name.removeprefix(top) for each in members}
    if lacking := [name for name in IN_SDIST if name not in names]:
        raise NotGoodError(f"{path.name} lacks {', '.join(lacking)}")


def try_installed(archive: Path, version: str) -> None:
    """Install a wheel or sdist into a fresh environment, and use it there.

    It finds its dependencies in this environment, so no package index is asked.

    :raises NotGoodError: something does not work; the message has its output.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        offline = ["--no-index", "--no-deps"]
        wheel = archive
        if archive.suffix == ".gz":
            _call([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", temporary, str(archive)], folder)
            [wheel] = folder.glob("*.whl")
        fresh = folder / "fresh"
        venv.create(fresh, with_pip=False)
        _call([*pip, "--python", str(fresh / "bin" / "python"), "install", *offline, str(wheel)], folder)
        [packages] = fresh.glob("lib/python*/site-packages")
        # After its own packages, and without this environment's .pth files: these lead to the package in this folder.
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        python, command = str(fresh / "bin" / "python"), str(fresh / "bin" / "air-executor")
        code = f"import {PACKAGE}; print({PACKAGE}.__file__)"
        expect(str(packages), _call([python, "-c", code], folder), archive)
        expect(f"air-executor {version}", _call([command, "--version"], folder), archive)
        expect("# air-executor for programs", _call([command, "help", "agents"], folder), archive)
        env = {"AIR_EXECUTOR_STATE_DIR": str(folder / "state"), "AIR_EXECUTOR_PRIVATE_DIR": str(folder / "private")}
        expect("it works", _call([command, "add", "--wait", "--", "echo", "it works"], folder, env), archive)


def expect(wanted: str, found: str, archive: Path) -> None:
    """Check that an output begins as it should.

    :raises NotGoodError: it does not.
    """
    if not found.startswith(wanted):
        raise NotGoodError(f"installed from {archive.name}, it prints {found!r} in place of {wanted!r}")


def _call(command: list[str], folder: Path, env: dict[str, str] | None = None) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AIR_EXECUTOR", "PYTHON"))}
    done = subprocess.run(
        command, cwd=folder, env={**inherited, **(env or {})}, capture_output=True, text=True, timeout=_COMMAND_S
    )
    if done.returncode:
        raise NotGoodError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def write_checksums(folder: Path) -> None:
    """Write the digests of the files in a folder, as ``sha256sum --check`` reads them."""
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(lines))


if __name__ == "__main__":
    sys.exit(main())
