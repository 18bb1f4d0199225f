"""Draws the server's figures as an SVG file of its own, legible on light and dark pages."""

import math
from collections.abc import Iterator
from html import escape
from typing import Final

from attrs import frozen

__all__ = ["Bar", "Span", "draw"]

WIDTH: Final = 860
_LABELS: Final = 190
_ROW: Final = 22
_HEAD: Final = 34
_STYLE: Final = """
svg { color-scheme: light dark; --page: #fff; --text: #1f2328; --dim: #656d76; --line: #d8dee4;
      --ours: #1a7f64; --floor: #a8b3bd; --other: #c0762b; }
@media (prefers-color-scheme: dark) {
  svg { --page: #0d1117; --text: #e6edf3; --dim: #9198a1; --line: #30363d;
        --ours: #3fb68b; --floor: #6b7681; --other: #d99a4e; } }
text { font: 12px system-ui, sans-serif; fill: var(--text); }
.title { font-weight: 600; font-size: 14px; }
.dim { fill: var(--dim); font-size: 11px; }
.end { text-anchor: end; }
.middle { text-anchor: middle; }
.grid { stroke: var(--line); }
.ours { fill: var(--ours); stroke: var(--ours); }
.floor { fill: var(--floor); stroke: var(--floor); }
.other { fill: var(--other); stroke: var(--other); }
"""


@frozen
class Bar:
    """A server's requests a second, and microseconds of its processor for each."""

    name: str
    rate: float
    processor: float


@frozen
class Span:
    """How long a server's callers wait with so many connections, in milliseconds."""

    name: str
    connections: int
    p50: float
    p99: float
    worst: float


def kind(name: str) -> str:
    if name.startswith("ours"):
        return "ours"
    return "floor" if name.startswith(("h11", "read and write", "trivial")) else "other"


def draw(bars: list[Bar], spans: list[Span]) -> str:
    """Return the text of the file: bars of rates, and below them spans of waiting on a logarithmic scale."""
    top = 12
    parts: list[str] = []
    if bars:
        parts += _bars(bars, top)
        top += _HEAD + _ROW * len(bars) + 36
    if spans:
        parts += _spans(spans, top)
        top += _HEAD + _ROW * len(spans) + 40
    title = "POST echo of 1 KB: requests a second, and how long callers wait"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img" aria-label="{title}">',
            f"<title>{title}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect width="{WIDTH}" height="{top}" style="fill: var(--page)"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, text: str, classes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{escape(text)}</text>'


def _bars(bars: list[Bar], top: int) -> Iterator[str]:
    yield _text(12, top + 12, "POST echo of 1 KB, 16 connections, one core: requests a second", "title")
    yield _text(WIDTH - 12, top + 12, "µs of CPU for each", "dim end")
    room = WIDTH - _LABELS - 140
    most = max(each.rate for each in bars)
    for number, each in enumerate(bars):
        y, width = top + _HEAD + _ROW * number, max(1.0, room * each.rate / most)
        yield _text(_LABELS - 8, y + 12, each.name, "end")
        yield f'<rect x="{_LABELS}" y="{y}" width="{width:.1f}" height="{_ROW - 6}" rx="2" class="{kind(each.name)}"/>'
        yield _text(_LABELS + width + 6, y + 12, f"{each.rate:,.0f}")
        yield _text(WIDTH - 12, y + 12, f"{each.processor:,.0f}", "dim end")


def _spans(spans: list[Span], top: int) -> Iterator[str]:
    yield _text(12, top + 12, "How long callers wait: p50 (dot), p99 (bar), worst (line), ms", "title")
    room = WIDTH - _LABELS - 30
    low = 10 ** math.floor(math.log10(min(each.p50 for each in spans)))
    high = 10 ** math.ceil(math.log10(max(each.worst for each in spans)))
    bottom = top + _HEAD + _ROW * len(spans)

    def at(value: float) -> float:
        return _LABELS + room * math.log10(value / low) / math.log10(high / low)

    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        x = at(10.0**power)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top + _HEAD - 8}" y2="{bottom}" class="grid"/>'
        yield _text(x, bottom + 14, f"{10.0**power:g}", "dim middle")
    for number, each in enumerate(spans):
        y, colour = top + _HEAD + _ROW * number + 8, kind(each.name)
        yield _text(_LABELS - 8, y + 4, f"{each.name}, {each.connections}", "end")
        first, second, last = at(each.p50), at(each.p99), at(each.worst)
        yield f'<line x1="{first:.1f}" x2="{last:.1f}" y1="{y}" y2="{y}" class="{colour}"/>'
        yield f'<rect x="{first:.1f}" y="{y - 3}" width="{second - first:.1f}" height="6" class="{colour}"/>'
        yield f'<circle cx="{first:.1f}" cy="{y}" r="5" class="{colour}"/>'
