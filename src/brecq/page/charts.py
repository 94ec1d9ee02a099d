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

INK, FIRST, SECOND, FAINT, PAPER = "#010203", "#010204", "#010205", "#010206", "#010207"
"""Stand-ins that become CSS variables in the SVG."""

POINT = "brecq-point-"
WIDTH = 8.4
"""Inches: a page is about 61 of its letters wide, so that those of a chart are a little smaller than the text."""

LONGEST = 28
"""Letters of a layer's name beside an axis."""

TALL = 30
"""Rows of a chart from which its axis is written above it, too: the one below is out of sight."""

_ZERO = "hollow: exactly 0"
"""What has no place on a logarithmic axis stands at its edge."""

_VARIABLES = {
    INK: "var(--ink)", FIRST: "var(--first)", SECOND: "var(--second)", FAINT: "var(--faint)", PAPER: "var(--paper)",
}  # fmt: skip

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
        series = [("rounded to nearest", SECOND, [block.error_before for block in blocks])]
        if learned:
            series.append(("reconstructed", FIRST, [block.error_after for block in blocks]))
        edge = _logarithmic(axes, "x", [value for _, _, values in series for value in values])
        for name, color, values in series:
            axes.plot([value or edge for value in values], rows, "o", color=color, markersize=5, label=name)
            exact = [row for row in rows if values[row] == 0]
            hollow: Any = {"color": PAPER, "markeredgecolor": color, "clip_on": False}
            axes.plot([edge] * len(exact), exact, "o", markersize=5, label=_ZERO, **hollow)
        if learned:
            before, after = ([value or edge for value in values] for _, _, values in series)
            axes.hlines(rows, after, before, color=FAINT, linewidth=2, zorder=1)
        axes.set_yticks(list(rows), [_short(block.name) for block in blocks])
        axes.set_ylim(len(blocks) - 0.5, -0.5)
        axes.set_xlabel("squared error ÷ mean square of the float output")
        axes.grid(axis="x")
        axes.tick_params(top=len(blocks) > TALL, labeltop=len(blocks) > TALL)
        chart.legend()
    return chart.svg("Error of each block" + (" before and after reconstruction" if learned else ""))


def sqnr_along(layers: Sequence[Layer], exported: Mapping[str, float] | None = None) -> str:
    """SQNR of each layer's output, in program order; `exported`: in a file, in dB by layer."""
    known = [layer for layer in layers if layer.sqnr is not None]
    with _Chart(WIDTH, 3.4) as chart:
        axes = chart.axes
        values = [layer.sqnr or 0.0 for layer in known]
        axes.plot(values, color=FIRST, marker="o", markersize=3, linewidth=1.2, label="quantized network")
        alone = [position for position, layer in enumerate(known) if layer.alone]
        if alone:
            at_these = [values[position] for position in alone]
            axes.plot(alone, at_these, "o", color=PAPER, markeredgecolor=FIRST, markersize=4, label="a part alone")
            chart.legend()
        if exported:
            at = [position for position, layer in enumerate(known) if layer.name in exported]
            found = [exported[known[position].name] for position in at]
            axes.plot(at, found, color=SECOND, marker="s", markersize=3, linewidth=1, label="exported file")
            chart.legend()
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
            codes = range(layer.code_low, layer.code_low + len(layer.codes))
            _bars(left, codes, layer.codes, 0.9, FIRST)
            left.set_xlabel(f"weight code, {layer.weights}")
        else:
            left.set_axis_off()
        noise = layer.noise
        if noise is not None:
            width = (noise.high - noise.low or 1.0) / len(noise.counts)
            at = [noise.low + (i + 0.5) * width for i in range(len(noise.counts))]
            _bars(right, at, [math.log10(1 + count) for count in noise.counts], width, SECOND)
            for bound in noise.grid or ():
                right.axvline(bound, color=INK, linewidth=1, linestyle="--")
            right.set_xlabel("output" + (", dashed: range of the grid" if noise.grid else ", stays in float"))
            right.set_ylabel("log₁₀(1 + n)")
    return chart.svg(f"Histograms of {layer.name}: weight codes and output values")


Point = tuple[int, float, str]
"""A result's size in bytes, its metric, and its name."""


def size_against(
    metric: str, networks: Sequence[Sequence[Point]], floating: float | None = None, fewer: bool = False
) -> str:
    """Size of the weights against a metric, a point for each result; of each network those that no other beats are
    joined.

    `floating`: the metric of the float network, a dashed line. `fewer` of the metric is better.
    """
    from matplotlib.ticker import EngFormatter

    with _Chart(WIDTH, 4.0) as chart:
        axes = chart.axes
        if floating is not None:
            axes.axhline(floating, color=INK, linewidth=0.8, linestyle="--", label="float")
            chart.legend()
        named: dict[tuple[float, float], list[str]] = {}
        for number, points in enumerate(networks):
            front = _front(points, -1 if fewer else 1)
            color, shape = (FIRST, SECOND)[number % 2], _SHAPES[number // 2 % len(_SHAPES)]
            axes.plot([size for size, *_ in front], [value for _, value, _ in front], color=FAINT)
            axes.plot(
                [size for size, *_ in points], [value for _, value, _ in points], shape, color=color, clip_on=False
            )
            for size, value, name in points:
                named.setdefault((size, value), []).append(name)
        axes.margins(x=0.12, y=0.12)
        low, high = axes.get_ylim()
        least, most = _BOUNDS.get(metric.removesuffix(" vs float").rpartition(" ")[2], (-math.inf, math.inf))
        axes.set_ylim(max(low, least), min(high, most))
        axes.set_xlim(left=max(axes.get_xlim()[0], 0))
        chart.label({place: ", ".join(names) for place, names in named.items()})
        axes.xaxis.set_major_formatter(EngFormatter("B", sep=" "))
        axes.set_xlabel("weights")
        axes.set_ylabel(metric)
        axes.grid()
    return chart.svg(f"Size of the weights against {metric}")


def _front(points: Sequence[Point], sign: int) -> list[Point]:
    """Those that no other beats in size and metric, of which `sign` says what is better."""
    beaten = (any(q[:2] != p[:2] and q[0] <= p[0] and sign * q[1] >= sign * p[1] for q in points) for p in points)
    return sorted(point for point, worse in zip(points, beaten, strict=True) if not worse)


def loss_against(cost: str, points: Sequence[tuple[float, float, str]]) -> str:
    """A cost against the predicted loss; each point has the class `point` and its number in `data-point`.

    The front is labelled below, where nothing can lie; what is no better stands above it.
    """
    from matplotlib.ticker import EngFormatter

    label = f"Predicted loss against {cost}"
    with _Chart(WIDTH, 4.0) as chart:
        axes = chart.axes
        edge = _logarithmic(axes, "y", [loss for _, loss, _ in points])
        for number, (value, loss, name) in enumerate(points):
            of_front = number > 0 and name.startswith("point")
            shape, size, order = ("*", 13, 5) if number == 0 else ("o", 7, 4) if of_front else ("s", 9, 3)
            color = SECOND if shape == "s" else FIRST
            style: Any = {"color": color} if loss else {"color": PAPER, "markeredgecolor": color, "clip_on": False}
            loss = loss or edge
            (line,) = axes.plot(value, loss, shape, markersize=size, zorder=order, **style)
            line.set_gid(f"{POINT}{number}")
            offset, side = ((-5, -11), "right") if of_front else ((0, 8), "center")
            axes.annotate(name, (value, loss), textcoords="offset points", xytext=offset, ha=side, fontsize=7)
        axes.margins(x=0.08, y=0.1)
        if cost in ("size", "bops"):
            axes.xaxis.set_major_formatter(EngFormatter("B" if cost == "size" else "", sep=" "))
        axes.set_xlabel({"size": "weights", "bops": "bit-operations a sample", "latency": "ms"}.get(cost, cost))
        axes.set_ylabel("predicted loss" + (f", {_ZERO}" if any(loss == 0 for _, loss, _ in points) else ""))
        axes.grid()
    return re.sub(rf'<g id="\w+-{POINT}(\d+)"', r'<g class="point" data-point="\1"', chart.svg(label))


def matches(title: str, series: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Values layer by layer, on a logarithmic axis, a line for each series."""
    from matplotlib.ticker import MaxNLocator

    with _Chart(WIDTH, 3.2) as chart:
        axes = chart.axes
        edge = _logarithmic(axes, "y", [value for _, values in series for value in values])
        for (name, values), color in zip(series, (SECOND, FIRST), strict=False):
            places = range(1, len(values) + 1)
            axes.plot(places, [value or edge for value in values], color=color, marker="o", markersize=3, label=name)
            exact = [place for place in places if values[place - 1] == 0]
            hollow: Any = {"color": PAPER, "markeredgecolor": color, "clip_on": False}
            axes.plot(exact, [edge] * len(exact), "o", markersize=4, **hollow)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set_xlabel("batch norm, counted from the input")
        zeros = any(value == 0 for _, values in series for value in values)
        axes.set_ylabel("standard deviations" + (f", {_ZERO}" if zeros else ""))
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
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        if error[0] is None:
            stream = io.StringIO()
            for patch in (self.figure.patch, *(axes.patch for axes in self.figure.axes)):
                patch.set_visible(False)  # the page's own background shows
            FigureCanvasSVG(self.figure).print_svg(stream, metadata={"Date": None})  # `savefig` would draw twice
            self.text = stream.getvalue()
        self._style.__exit__(None, None, None)

    def legend(self) -> None:
        """Say above everything what the series are; those without a point are none."""
        lines: dict[str, Any] = {str(line.get_label()): line for line in self.axes.get_lines()}
        series = {label: line for label, line in lines.items() if label[:1] != "_" and len(line.get_xdata())}
        self.figure.legend(series.values(), series.keys(), loc="outside upper center", ncols=3, frameon=False)

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


_SHAPES = ("o", "s", "^", "D", "v")

_BOUNDS = {
    "%": (0.0, 100.0), "SSIM": (-1.0, 1.0), "cosine": (-1.0, 1.0), "correlation": (-1.0, 1.0),
    "RMSE": (0.0, math.inf), "MAE": (0.0, math.inf), "perplexity": (1.0, math.inf),
}  # fmt: skip
"""Beyond which no metric can be, by the last word of its name."""

_BESIDE = ((6, 4), (6, -4), (-6, 4), (-6, -4), (0, 14), (0, -14), (0, 26), (0, -26))
"""Where a name may stand, in points from its own point."""


def _bars(axes: Axes, at: Sequence[float], heights: Sequence[float], width: float, color: str) -> None:
    """Bars of one color as one shape: hundreds of them, as `Axes.bar` makes, take most of the time of a page."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = [
        [(x - width / 2, 0), (x - width / 2, height), (x + width / 2, height), (x + width / 2, 0), (x - width / 2, 0)]
        for x, height in zip(at, heights, strict=True)
    ]
    shape = PathPatch(Path.make_compound_path(*map(Path, corners)), facecolor=color, edgecolor="none")
    shape.sticky_edges.y.append(0)
    axes.add_patch(shape)
    axes.autoscale_view()


def _names(axes: Axes, layers: Sequence[Layer]) -> None:
    every = -(-len(layers) // 56)
    shown = list(range(0, len(layers), every))
    axes.set_xticks(shown, [_short(layers[i].name) for i in shown], rotation=90, fontsize=7)
    axes.set_xlim(-0.8, len(layers) - 0.2)


def _short(name: str) -> str:
    """The end of a long name: it is what tells layers apart."""
    return name if len(name) <= LONGEST else "…" + name[1 - LONGEST :]


def _logarithmic(axes: Axes, which: str, values: Sequence[float]) -> float:
    """A logarithmic axis for `values` whose labels do not crowd: powers of ten, among few also 2 and 5, or
    all digits. It ends at such labels, so that there are two or more. Its lower end: zeros have their place there."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    known = [math.log10(value) for value in values if 0 < value < math.inf] or [0.0]
    decades = max(known) - min(known)
    few = decades < 2.5
    steps = [math.log10(step) for step in (range(1, 10) if decades < 0.7 else (1, 2, 5) if few else (1,))]
    first, last = math.floor(min(known)) - 1, math.ceil(max(known)) + 1
    grid = [power + step for power in range(first, last + 1) for step in steps]
    below = max(step for step in grid if step < min(known))
    above = min(step for step in grid if step > max(known))
    ticks = [10**step for step in grid if below <= step <= above]
    every = -(-len(ticks) // 12)
    axes.set(**{f"{which}scale": "log", f"{which}lim": (10**below, 10**above)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(ticks[::every]))
    axis.set_minor_formatter(NullFormatter())
    if few:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    return float(10**below)
