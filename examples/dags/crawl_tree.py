"""Follow-up work, wave after wave: a folder's folders are found by looking into it."""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk import Param, dag, get_current_context, task

from air_executor.follow_up import follow_up
from air_executor.jobs import queue_tasks


@task
def begin() -> None:
    """Queue the folder at which to begin."""
    queue_tasks([{"folder": get_current_context()["params"]["folder"]}])


@task
def look(folder: str) -> dict[str, int]:
    """Count the files of one folder, and queue its folders."""
    with os.scandir(folder) as entries:
        found = list(entries)
    queue_tasks([{"folder": each.path} for each in found if each.is_dir(follow_symlinks=False)])
    files = [each for each in found if each.is_file(follow_symlinks=False)]
    return {"files": len(files), "bytes": sum(each.stat().st_size for each in files)}


@task
def report(found: list[dict[str, int]]) -> int:
    """Add up what all waves have found."""
    files = sum(each["files"] for each in found)
    print(f"{files} files of {sum(each['bytes'] for each in found)} bytes in {len(found)} folders")
    return files


@dag(
    schedule=None,
    catchup=False,
    tags=["air-executor", "example"],
    params={"folder": Param(str(Path(__file__).parent), type="string", description="where to begin")},
)
def crawl_tree():
    """However deep the tree is, up to eight levels: each level is a wave of mapped tasks."""
    report(follow_up(begin(), look, waves=8))


crawl_tree()
