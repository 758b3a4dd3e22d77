"""A real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Where tests leave pictures of the pages, if it is set: CI keeps them.
PICTURES = "AIR_TEST_PICTURES"

_NAMES = ("chromium", "chromium-browser", "google-chrome")

CHROMIUM = next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Start a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM,
            timeout=180_000,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        try:
            yield chromium
        finally:
            chromium.close()


@contextlib.contextmanager
def page(chromium: Any, **options: Any) -> Iterator[Any]:
    """Open a page of its own, with cookies of its own. Exceptions in our scripts are in ``page.problems``."""
    context = chromium.new_context(viewport={"width": 1300, "height": 850}, **options)
    context.set_default_timeout(180_000)
    opened = context.new_page()
    opened.problems = []
    opened.on("pageerror", lambda error: _note(opened.problems, error))
    try:
        yield opened
    finally:
        context.close()


def _note(problems: list[str], error: Any) -> None:
    if "air_executor" in f"{error} {error.stack}":  # Airflow's own pages raise some, as when one is left
        problems.append(str(error))


def picture(opened: Any, name: str) -> None:
    """Leave a picture of a page, if somebody wants them."""
    if folder := os.environ.get(PICTURES):
        Path(folder).mkdir(parents=True, exist_ok=True)
        opened.screenshot(path=str(Path(folder) / f"{name}.png"))
