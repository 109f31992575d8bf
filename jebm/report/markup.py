"""Markup of a page, in which any text is escaped."""

import html
from collections.abc import Iterable
from typing import Any

__all__ = ["Markup", "note", "number", "section", "table", "tag"]

ALONE = ("img", "meta")  # elements without content


class Markup(str):
    """Markup, put into a page as it is; any other text is escaped by `tag`."""


def tag(name: str, /, *content: Any, **attributes: Any) -> Markup:
    """An element. The one place where text becomes markup: all but `Markup` is escaped.

    Attributes that are Python's words have an underscore at their end, as ``class_``; others in them are hyphens.
    """
    inner = "".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in content)
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}='{html.escape(str(value))}'" for key, value in attributes.items()
    )
    return Markup(f"<{name}{given}>" if name in ALONE else f"<{name}{given}>{inner}</{name}>")


def section(title: str, *content: Markup) -> Markup:
    """A heading and what is under it."""
    return Markup(tag("h2", title) + "".join(content))


def number(name: str, /, *content: Any) -> Markup:
    """An element, ``td`` or ``th``, whose content is flush right."""
    return tag(name, *content, class_="number")


def table(rows: Iterable[Iterable[Any]], heads: Iterable[Any] = ()) -> Markup:
    """A table; what is no cell yet becomes one."""
    lines = [tag("tr", *(_cell("th", cell) for cell in heads))] if heads else []
    lines += [tag("tr", *(_cell("td", cell) for cell in row)) for row in rows]
    return tag("table", *lines)


def _cell(name: str, content: Any) -> Markup:
    is_one = isinstance(content, Markup) and content.startswith(("<td", "<th"))
    return content if is_one else tag(name, content)


def note(text: str) -> Markup:
    """A paragraph of lesser weight."""
    return tag("p", text, class_="note")
