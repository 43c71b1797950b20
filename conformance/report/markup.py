"""HTML and SVG elements whose text is escaped by construction: only what `tag` and `joined` give is taken as it is."""

from __future__ import annotations

import html

from coatref.conformance.report.words import printable


class Markup(str):
    """Text that is HTML already; every other text is escaped where it enters an element."""

    __slots__ = ()


_VOID = {"meta", "br"}


def escaped(content: str | Markup) -> Markup:
    """A text as HTML that shows it; `Markup` is left as it is.

    >>> escaped("<b>"), escaped(Markup("<b>"))
    ('&lt;b&gt;', '<b>')
    """
    return content if isinstance(content, Markup) else Markup(html.escape(printable(content), quote=True))


def tag(name: str, /, *children: str | Markup, **attributes: str | float | bool | None) -> Markup:
    """An element.

    Args:
        name: of the element.
        children: its content; texts are escaped.
        attributes: `class_` is "class", other underlines are hyphens; None and False leave one out, True gives no value.

    >>> tag("p", "a < b", class_="note", hidden=True)
    '<p class="note" hidden>a &lt; b</p>'
    """
    written = "".join(
        f" {_attribute(key)}" if value is True else f' {_attribute(key)}="{escaped(_value(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{joined(*children)}</{name}>")


def section(title: str, *children: str | Markup, anchor: str) -> Markup:
    """A part of the page under a heading, which can be linked to by its anchor."""
    return tag("section", tag("h2", title, id=anchor), *children, aria_labelledby=anchor)


def joined(*children: str | Markup) -> Markup:
    """Elements and texts one after the other; texts are escaped."""
    return Markup("".join(escaped(child) for child in children))


def _attribute(key: str) -> str:
    """The HTML name of an attribute; SVG's `viewBox` and the like keep their capitals."""
    return key.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    """An attribute's value; coordinates to a hundredth."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
