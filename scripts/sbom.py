"""The software bill of materials of a release, in CycloneDX's JSON: what the pins say of all that AirExecutor needs."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAME = "air-executor"

#: What is installed only if it is asked for: its components are optional.
EXTRAS = ("airflow", "mcp")


@dataclass
class _Component:
    """A package of the bill."""

    name: str
    version: str
    is_required: bool
    needs: set[str] = field(default_factory=set)

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}"


def sbom(version: str, pins: Path, made_s: int) -> str:
    """Return the bill of a version: its dependencies, those of its extras, and theirs, as the pins have them.

    Who needs whom is known from the packages that are installed here, of the same pins.

    :param made_s: when the release was made, in seconds since the epoch.
    :raises LookupError: a dependency has no pin.
    """
    versions = read_pins(pins)
    root = _Component(NAME, version, is_required=True)
    components: dict[str, _Component] = {}
    _add(root, "", components, versions, is_required=True)
    for extra in EXTRAS:
        _add(root, extra, components, versions, is_required=False)
    parts = sorted(components.values(), key=lambda each: each.name)
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(made_s, tz=timezone.utc).isoformat(),
            "component": {**_described(root), "licenses": [{"license": {"id": "Apache-2.0"}}]},
        },
        "components": [{**_described(each), "scope": "required" if each.is_required else "optional"} for each in parts],
        "dependencies": [
            {"ref": each.purl, "dependsOn": sorted(components[name].purl for name in each.needs)}
            for each in (root, *parts)
        ],
    }
    # The same content has the same number.
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(document, sort_keys=True))}"
    return json.dumps(document, indent=2) + "\n"


def _described(component: _Component) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": component.purl,
        "name": component.name,
        "version": component.version,
        "purl": component.purl,
    }


def read_pins(path: Path) -> dict[str, str]:
    """Return the versions that a file of pins has for this Python and system, by the packages' names."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+?)(?:\s*;\s*(.*?))?\s*\\?$", line):
            name, version, marker = match.groups()
            if marker is None or Marker(marker).evaluate():
                found[canonicalize_name(name)] = version
    return found


def _add(
    whose: _Component, extra: str, components: dict[str, _Component], versions: dict[str, str], *, is_required: bool
) -> None:
    """Add what a package needs, with one of its extras, and what that needs."""
    for need in _needs(whose.name, extra):
        name = canonicalize_name(need.name)
        if name not in versions:
            raise LookupError(f"{name}, which {whose.name} needs, has no pin: call scripts/pin")
        whose.needs.add(name)
        known = components.get(name)
        if known is None:
            known = components[name] = _Component(name, versions[name], is_required)
            _add(known, "", components, versions, is_required=is_required)
        elif is_required and not known.is_required:
            known.is_required = True
        for each in sorted(need.extras):
            _add(known, each, components, versions, is_required=is_required)


def _needs(name: str, extra: str) -> Iterator[Requirement]:
    """Yield what a package needs here: always, or for one of its extras alone."""
    for text in distribution(name).requires or []:
        need = Requirement(text)
        always = need.marker is None or need.marker.evaluate({"extra": ""})
        for_extra = bool(extra) and need.marker is not None and need.marker.evaluate({"extra": extra})
        if always if not extra else for_extra and not always:
            yield need
