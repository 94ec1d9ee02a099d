"""The charts of a page: SVG drawn by matplotlib, in colors that follow the page's light or dark theme."""

from __future__ import annotations

import html
import io
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from brecq.page.facts import Layer
from brecq.report import BlockReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FIRST, SECOND, FAINT = "#010203", "#010204", "#010205", "#010206"
"""Stand-ins that become CSS variables in the SVG."""

POINT = "brecq-point-"
WIDTH = 8.4
"""Inches: a page is about 61 of its letters wide, so that those of a chart are a little smaller than the text."""

LONGEST = 28
"""Letters of a layer's name beside an axis."""

_VARIABLES = {INK: "var(--ink)", FIRST: "var(--first)", SECOND: "var(--second)", FAINT: "var(--faint)"}

_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "brecq", "font.size": 8.5, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": FAINT, "xtick.color": INK, "ytick.color": INK, "grid.color": FAINT, "grid.linewidth": 0.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
}  # fmt: skip


def block_errors(blocks: Sequence[BlockReport], learned: bool = True) -> str:
    """Per block the error of rounding to nearest and, if it was `learned`, after it, on a logarithmic axis."""
    with _Chart(WIDTH, 0.9 + 0.23 * len(blocks)) as chart:
        axes = chart.axes
        rows = range(len(blocks))
        before = [max(block.error_before, 1e-12) for block in blocks]
        after = [max(block.error_after, 1e-12) for block in blocks]
        axes.plot(before, rows, "o", color=SECOND, markersize=5, label="rounded to nearest")
        if learned:
            axes.hlines(rows, after, before, color=FAINT, linewidth=2, zorder=1)
            axes.plot(after, rows, "o", color=FIRST, markersize=5, label="reconstructed")
        _logarithmic(axes, "x", [*before, *after])
        axes.set_yticks(list(rows), [_short(block.name) for block in blocks])
        axes.set_ylim(len(blocks) - 0.5, -0.5)
        axes.set_xlabel("squared error ÷ mean square of the float output")
        axes.grid(axis="x")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return chart.svg("Error of each block" + (" before and after reconstruction" if learned else ""))


def sqnr_along(layers: Sequence[Layer], exported: Mapping[str, float] | None = None) -> str:
    """SQNR of each layer's output, in program order; `exported`: in a file, in dB by layer."""
    known = [layer for layer in layers if layer.sqnr is not None]
    with _Chart(WIDTH, 3.4) as chart:
        axes = chart.axes
        values = [layer.sqnr or 0.0 for layer in known]
        axes.plot(values, color=FIRST, marker="o", markersize=3, linewidth=1.2, label="quantized network")
        if exported:
            at = [position for position, layer in enumerate(known) if layer.name in exported]
            found = [exported[known[position].name] for position in at]
            axes.plot(at, found, color=SECOND, marker="s", markersize=3, linewidth=1, label="exported file")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
        axes.set_ylabel("SQNR, dB")
        _names(axes, known)
        axes.grid(axis="y")
    return chart.svg("Signal-to-quantization-noise ratio of each layer's output")


def bytes_per_layer(layers: Sequence[Layer]) -> str:
    """Stored bytes of each layer's weight, its bits written above the bar."""
    from matplotlib.ticker import EngFormatter

    with _Chart(WIDTH, 3.4) as chart:
        axes = chart.axes
        sizes = [layer.bytes for layer in layers]
        axes.bar(range(len(layers)), sizes, color=[SECOND if layer.bits > 8 else FIRST for layer in layers])
        if len(layers) <= 64:
            for position, layer in enumerate(layers):
                bits = "fp" if layer.bits > 8 else str(layer.bits)
                axes.annotate(bits, (position, sizes[position]), ha="center", va="bottom", fontsize=7)
        axes.yaxis.set_major_formatter(EngFormatter("B", sep=" "))
        axes.set_ylabel("weight")
        _names(axes, layers)
        axes.grid(axis="y")
    return chart.svg("Stored size of each layer's weight; the numbers are bits")


def histograms(layer: Layer) -> str:
    """How often each weight code is used, and the layer's output with the range of its grid."""
    from matplotlib.ticker import MaxNLocator

    with _Chart(WIDTH, 1.9, columns=2) as chart:
        left, right = chart.columns
        if layer.codes:
            left.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            left.bar(range(layer.code_low, layer.code_low + len(layer.codes)), layer.codes, width=0.9, color=FIRST)
            left.set_xlabel(f"weight code, {layer.weights}")
        else:
            left.set_axis_off()
        noise = layer.noise
        if noise is not None:
            width = max(noise.high - noise.low, 1e-12) / len(noise.counts)
            at = [noise.low + (i + 0.5) * width for i in range(len(noise.counts))]
            right.bar(at, [math.log10(1 + count) for count in noise.counts], width=width, color=SECOND)
            for bound in noise.grid or ():
                right.axvline(bound, color=INK, linewidth=1, linestyle="--")
            right.set_xlabel("output" + (", dashed: range of the grid" if noise.grid else ", stays in float"))
            right.set_ylabel("log₁₀(1 + n)")
    return chart.svg(f"Histograms of {layer.name}: weight codes and output values")


def size_against(
    metric: str, points: Sequence[tuple[int, float, str]], floating: float | None = None, fewer: bool = False
) -> str:
    """Size of the weights against a metric, a point for each result; results that no other beats are joined.

    `floating`: the metric of the float network, a dashed line. `fewer` of the metric is better.
    """
    from matplotlib.ticker import EngFormatter

    sign = -1 if fewer else 1
    with _Chart(WIDTH, 4.0) as chart:
        axes = chart.axes
        front = sorted(
            p
            for p in points
            if not any(q[:2] != p[:2] and q[0] <= p[0] and sign * q[1] >= sign * p[1] for q in points)
        )
        if floating is not None:
            axes.axhline(floating, color=INK, linewidth=0.8, linestyle="--", label="float")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
        axes.plot([size for size, *_ in front], [value for _, value, _ in front], color=FAINT)
        axes.plot([size for size, *_ in points], [value for _, value, _ in points], "o", color=FIRST)
        axes.margins(x=0.12, y=0.12)
        named: dict[tuple[float, float], list[str]] = {}
        for size, value, name in points:
            named.setdefault((size, value), []).append(name)
        chart.label({place: ", ".join(names) for place, names in named.items()})
        axes.xaxis.set_major_formatter(EngFormatter("B", sep=" "))
        axes.set_xlabel("weights")
        axes.set_ylabel(metric)
        axes.grid()
    return chart.svg(f"Size of the weights against {metric}")


def loss_against(cost: str, points: Sequence[tuple[float, float, str]]) -> str:
    """A cost against the predicted loss; each point has the class `point` and its number in `data-point`.

    The front is labelled below, where nothing can lie; what is no better stands above it.
    """
    from matplotlib.ticker import EngFormatter

    label = f"Predicted loss against {cost}"
    with _Chart(WIDTH, 4.0) as chart:
        axes = chart.axes
        for number, (value, loss, name) in enumerate(points):
            of_front = number > 0 and name.startswith("point")
            shape, size, order = ("*", 13, 5) if number == 0 else ("o", 7, 4) if of_front else ("s", 9, 3)
            loss = max(loss, 1e-12)
            (line,) = axes.plot(
                value, loss, shape, color=SECOND if shape == "s" else FIRST, markersize=size, zorder=order
            )
            line.set_gid(f"{POINT}{number}")
            offset, side = ((-5, -11), "right") if of_front else ((0, 8), "center")
            axes.annotate(name, (value, loss), textcoords="offset points", xytext=offset, ha=side, fontsize=7)
        _logarithmic(axes, "y", [max(loss, 1e-12) for _, loss, _ in points])
        axes.margins(x=0.08, y=0.1)
        if cost in ("size", "bops"):
            axes.xaxis.set_major_formatter(EngFormatter("B" if cost == "size" else "", sep=" "))
        axes.set_xlabel({"size": "weights", "bops": "bit-operations a sample", "latency": "ms"}.get(cost, cost))
        axes.set_ylabel("predicted loss")
        axes.grid()
    return re.sub(rf'<g id="\w+-{POINT}(\d+)"', r'<g class="point" data-point="\1"', chart.svg(label))


def matches(title: str, series: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Values layer by layer, on a logarithmic axis, a line for each series."""
    from matplotlib.ticker import MaxNLocator

    with _Chart(WIDTH, 3.2) as chart:
        axes = chart.axes
        for (name, values), color in zip(series, (SECOND, FIRST), strict=False):
            places = range(1, len(values) + 1)
            axes.plot(
                places, [max(value, 1e-6) for value in values], color=color, marker="o", markersize=3, label=name
            )
        _logarithmic(axes, "y", [max(value, 1e-6) for _, values in series for value in values])
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set_xlabel("batch norm, counted from the input")
        axes.set_ylabel("standard deviations")
        axes.grid(axis="y")
        axes.set_title(title, loc="left", fontsize=9)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    return chart.svg(title)


class _Chart:
    """A figure in the page's style; `svg` gives it as text once the `with` block is left."""

    def __init__(self, width: float, height: float, columns: int = 1) -> None:
        self.size, self.count = (width, height), columns
        self.text = ""

    def __enter__(self) -> _Chart:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        self._style = rc_context(_STYLE)
        self._style.__enter__()
        self.figure: Figure = Figure(figsize=self.size, layout="constrained")
        found = self.figure.subplots(1, self.count, squeeze=False)[0]
        self.columns: list[Axes] = list(found)
        self.axes = self.columns[0]
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            stream = io.StringIO()
            self.figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
            self.text = stream.getvalue()
        self._style.__exit__(None, None, None)

    def label(self, names: Mapping[tuple[float, float], str]) -> None:
        """Write names beside their points, where they cover no other name."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        taken: list[Any] = []
        for place, name in sorted(names.items()):
            for x, y in _BESIDE:
                text = self.axes.annotate(
                    name, place, textcoords="offset points", xytext=(x, y), fontsize=8,
                    ha="left" if x > 0 else "right" if x < 0 else "center", va="bottom" if y > 0 else "top",
                )  # fmt: skip
                box = text.get_window_extent(canvas.get_renderer())
                if (x, y) == _BESIDE[-1] or not any(box.overlaps(other) for other in taken):
                    taken.append(box)
                    break
                text.remove()

    def svg(self, label: str) -> str:
        """The picture as an `<svg>` element with `label` for those who cannot see it."""
        text = self.text[self.text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        for color, variable in _VARIABLES.items():
            text = text.replace(color, variable)
        text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"|height="[\d.]+pt" width="[\d.]+pt"', "", text)
        # identifiers are unique in a drawing, not in a page of several
        salt = f"{zlib.crc32(label.encode()):x}"
        text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{salt}-", text)
        return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


_BESIDE = ((6, 4), (6, -4), (-6, 4), (-6, -4), (0, 14), (0, -14), (0, 26), (0, -26))
"""Where a name may stand, in points from its own point."""


def _names(axes: Axes, layers: Sequence[Layer]) -> None:
    every = -(-len(layers) // 56)
    shown = list(range(0, len(layers), every))
    axes.set_xticks(shown, [_short(layers[i].name) for i in shown], rotation=90, fontsize=7)
    axes.set_xlim(-0.8, len(layers) - 0.2)


def _short(name: str) -> str:
    """The end of a long name: it is what tells layers apart."""
    return name if len(name) <= LONGEST else "…" + name[1 - LONGEST :]


def _logarithmic(axes: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis whose labels do not crowd: 1, 2 and 5 of a power of ten where there are few, else powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    decades = math.log10(max(values) / min(values)) if values else 0.0
    subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    if decades < 2.5:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}" if value < 1e-4 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
