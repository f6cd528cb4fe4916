"""Templates to text. Everything is escaped unless a template is told otherwise, and none is."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2

from service.dashboard import formatting
from service.dashboard.assets import Assets
from service.entering import appointment_of
from service.holder_words import holder_words, told_words

FOLDER = Path(__file__).parent / "templates"


class Templates:
    """Every template of the page, compiled now: the first who looks would keep the event loop for 40 ms."""

    def __init__(self, assets: Assets) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(FOLDER),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        for read in (
            formatting.duration,
            formatting.at_most,
            formatting.ago,
            formatting.number,
            formatting.rate,
            formatting.percent,
            formatting.stamp,
            formatting.clock,
            formatting.iso,
            formatting.plural,
            holder_words,
            told_words,
            formatting.parts,
        ):
            self._environment.filters[read.__name__] = read
        self._environment.globals.update(
            asset=assets.url,
            lock_url=lock_url,
            appointment_of=appointment_of,
            with_query=with_query,
        )
        for name in self._environment.list_templates():
            self._environment.get_template(name)

    def render(self, template: str, **values: Any) -> str:
        """The template with these values."""
        return self._environment.get_template(template).render(**values)


def lock_url(name: str) -> str:
    """The page of one lock; a / in its name goes as %2F."""
    return f"/dashboard/locks/{quote(name, safe='')}"


def with_query(path: str, **values: object) -> str:
    """An address with these parameters; those that are None or empty are left out."""
    given = {name: value for name, value in values.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path
