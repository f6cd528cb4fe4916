"""A picture of the report's timeline, as the README shows it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
WIDTH, HEIGHT = 1280, 1000
PATIENCE_MS = 20_000


def png_of_timeline(html_path: Path, png_path: Path, *, scheme: Literal["light", "dark"] = "light") -> None:
    """Opens the report in Chromium and writes the picture of its timeline; raises playwright's Error without one."""
    with sync_playwright() as playwright:
        executable = shutil.which("chromium") or CHROMIUM
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme, device_scale_factor=1.5
        )
        page.goto(html_path.resolve().as_uri())
        page.wait_for_selector("#timeline[data-drawn]", timeout=PATIENCE_MS)
        page.locator("#timeline").screenshot(path=png_path)
        browser.close()
