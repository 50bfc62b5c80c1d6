"""A measurement as a picture: how each row compares with the peer and with the limit.

Before: __main__.py or page.py has a Measurement. After: an SVG that needs nothing else.
Rules:  - One line for each row, on a logarithmic axis: right of 1 is better than the other.
        - A dot is the ratio of the medians; the bar reaches from the lowest to the highest ratio of single runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape

from scripts.lib.bench.results import Measurement, Ratio
from scripts.lib.bench.rows import Row
from scripts.lib.bench.tables import circumstances

_LINE = 22
_LEFT, _WIDTH, _RIGHT = 190, 620, 60
_TOP, _BOTTOM = 64, 52
# Contender, colour, what it is called, and by how much its dots are off the middle of the line.
_SERIES = (("peer", "#2a7ab9", "to vhost-device-vsock", -4), ("limit", "#d9822b", "to a plain UNIX socket", 4))
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class _Axis:
    """From ratios to places."""

    lowest: float
    highest: float

    def x(self, ratio: float) -> float:
        part = (math.log(ratio) - math.log(self.lowest)) / (math.log(self.highest) - math.log(self.lowest))
        return _LEFT + min(max(part, 0.0), 1.0) * _WIDTH

    def ticks(self) -> list[float]:
        return [tick for tick in _TICKS if self.lowest <= tick <= self.highest]


def _axis(ratios: list[Ratio]) -> _Axis:
    """From tick to tick, with 1 in it."""
    lowest = min([0.5, *(ratio.lowest for ratio in ratios)])
    highest = max([2.0, *(ratio.highest for ratio in ratios)])
    below = [tick for tick in _TICKS if tick <= lowest]
    above = [tick for tick in _TICKS if tick >= highest]
    return _Axis(below[-1] if below else _TICKS[0], above[0] if above else _TICKS[-1])


def svg(measurement: Measurement) -> str:
    """The picture; rows without any ratio are left out."""
    lines: list[tuple[Row, dict[str, Ratio]]] = []
    for row in measurement.rows:
        found = {name: measurement.ratio(row, "ours", name) for name, *_ in _SERIES}
        ratios = {name: ratio for name, ratio in found.items() if ratio is not None}
        if ratios:
            lines.append((row, ratios))
    axis = _axis([ratio for _, ratios in lines for ratio in ratios.values()])
    width, bottom = _LEFT + _WIDTH + _RIGHT, _TOP + len(lines) * _LINE
    height = bottom + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        "<style>text { font: 12px sans-serif }",
        "text.title { font: bold 15px sans-serif }",
        "text.small { font: 10px sans-serif }</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="20" class="title">How many times as good as the others (right of 1: better)</text>',
        *_legend(measurement),
        *_grid(axis, bottom),
    ]
    for number, (row, ratios) in enumerate(lines):
        parts += _row(axis, _TOP + number * _LINE + _LINE / 2, row, ratios)
    parts.append(
        f'<text x="12" y="{height - 10}" class="small" fill="#555555">{escape(circumstances(measurement))}</text>'
    )
    return "\n".join([*parts, "</svg>", ""])


def _legend(measurement: Measurement) -> Iterator[str]:
    at = _LEFT
    for name, colour, text, _ in _SERIES:
        if name in measurement.contenders:
            yield f'<circle cx="{at + 5}" cy="38" r="4" fill="{colour}"/><text x="{at + 15}" y="42">{text}</text>'
            at += 180


def _grid(axis: _Axis, bottom: float) -> Iterator[str]:
    for tick in axis.ticks():
        x = axis.x(tick)
        colour, wide = ("#333333", 1.5) if tick == 1 else ("#dddddd", 1)
        yield f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="{colour}" stroke-width="{wide}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'


def _row(axis: _Axis, y: float, row: Row, ratios: dict[str, Ratio]) -> Iterator[str]:
    yield f'<text x="{_LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(row.name)}</text>'
    for name, colour, _, off in _SERIES:
        if name not in ratios:
            continue
        ratio, at = ratios[name], y + off
        low, high = axis.x(ratio.lowest), axis.x(ratio.highest)
        yield f'<line x1="{low:.1f}" y1="{at:.1f}" x2="{high:.1f}" y2="{at:.1f}" stroke="{colour}" stroke-width="2"/>'
        yield (
            f'<circle cx="{axis.x(ratio.median):.1f}" cy="{at:.1f}" r="4" fill="{colour}">'
            f"<title>{escape(row.title)}: {ratio.median:.2f}</title></circle>"
        )
