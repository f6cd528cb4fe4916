"""A picture of the report's timeline, as the README shows it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
WIDTH, HEIGHT = 1280, 1000
PATIENCE_MS = 60_000

Scheme = Literal["light", "dark"]


def png_of_timeline(html_path: Path, png_path: Path, *, scheme: Scheme = "light") -> None:
    """Opens the report in Chromium and writes the picture of its timeline; raises playwright's Error without one."""
    with sync_playwright() as playwright:
        executable = shutil.which("chromium") or CHROMIUM
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        take_timeline(browser, html_path, png_path, scheme=scheme)
        browser.close()


def take_timeline(browser: Browser, html_path: Path, png_path: Path, *, scheme: Scheme) -> None:
    """The same in a browser that runs."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE_MS)
    page.goto(html_path.resolve().as_uri())
    page.wait_for_selector("#timeline[data-drawn]")
    page.add_style_tag(content=".top { position: static; }")
    page.locator("#timeline").screenshot(path=png_path)
    page.close()
