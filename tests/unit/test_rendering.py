"""Templates are ready before anybody looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.dashboard import rendering
from service.dashboard.assets import Assets
from service.dashboard.rendering import FOLDER, Templates


def test_no_template_is_left_for_the_first_who_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = {path.name for path in FOLDER.iterdir()}
    for name in names:
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    monkeypatch.setattr(rendering, "FOLDER", tmp_path)
    templates = Templates(Assets())

    for name in names:
        (tmp_path / name).unlink()

    assert {templates._environment.get_template(name).name for name in names} == names
