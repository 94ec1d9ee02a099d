"""Charts of a search: bits per layer, and the front with the chosen point; PNG or SVG, by the file's ending."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brecq.errors import CheckpointError, ConfigError
from brecq.precision.allocation import BitAllocation
from brecq.precision.budget import UNITS, Cost, readable
from brecq.storage.files import write as write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHTS, INPUTS, CHOSEN = "#2b6cb0", "#dd8452", "#c53030"
_UNIT: dict[Cost, str] = {"size": "MB", "bops": "G", "latency": "ms"}
_AXIS: dict[Cost, str] = {"size": "weights, MB", "bops": "bit-operations a sample, 10⁹", "latency": "latency, ms"}


def plot_bits(allocation: BitAllocation, files: Sequence[Path | str]) -> None:
    """Bars of weight bits and steps of input bits, layer by layer.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    names = list(allocation.layers)
    weights = [bits.weights for bits in allocation.layers.values()]
    inputs = [bits.activations for bits in allocation.layers.values()]
    figure = _figure(max(6.4, 0.24 * len(names) + 1.5), 4.2)
    axes = figure.add_subplot()
    positions = range(len(names))
    axes.bar(positions, _shown(weights), color=WEIGHTS, width=0.8, label="weight")
    axes.plot(positions, _shown(inputs), color=INPUTS, marker="_", markersize=9, linestyle="none",
              markeredgewidth=2.5, label="input")  # fmt: skip
    ticks = sorted({*weights, *inputs})
    axes.set_yticks(_shown(ticks), ["float" if bits > 8 else str(bits) for bits in ticks])
    axes.set_ylim(0, max(_shown(ticks)) + 1)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_xticks(list(positions), names, rotation=90, fontsize=7)
    axes.set_ylabel("bits")
    costs = ", ".join(f"{cost} {readable(cost, value)}" for cost, value in allocation.costs.items())
    axes.set_title(f"{costs}; predicted loss {allocation.loss:.3g}", fontsize=9, loc="left")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False, borderaxespad=0.2)
    _save(figure, files)


def plot_front(front: Sequence[BitAllocation], cost: Cost, chosen: BitAllocation, files: Sequence[Path | str]) -> None:
    """Predicted loss (logarithmic) against a cost, with the chosen point.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    unit = UNITS[cost][_UNIT[cost]]
    figure = _figure(6.4, 4.2)
    axes = figure.add_subplot()
    places = [(point.costs[cost] / unit, point.loss) for point in front]
    places.append((chosen.costs[cost] / unit, chosen.loss))
    if known := [loss for _, loss in places if loss > 0]:
        axes.set_yscale("log")
        if exact := [at for at, loss in places if loss == 0]:  # there is no 0 on this axis: they stand at its edge
            edge = min(known) / 10
            axes.set_ylim(bottom=edge)
            axes.plot(exact, [edge] * len(exact), "o", color="white", markeredgecolor=WEIGHTS, clip_on=False, zorder=3,
                      label="loss exactly 0")  # fmt: skip
            places = [(at, loss or edge) for at, loss in places]
    *along, star = places
    axes.plot(*zip(*along, strict=True), color=WEIGHTS, marker="o", label="front", clip_on=False)
    for number, place in enumerate(along, 1):
        axes.annotate(str(number), place, textcoords="offset points", xytext=(5, 5), fontsize=7)
    axes.plot(*star, color=CHOSEN, marker="*", markersize=13, linestyle="none", label="chosen", clip_on=False)
    axes.set_xlabel(_AXIS[cost])
    axes.set_ylabel(f"predicted loss ({front[0].metric})")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, files)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("charts need matplotlib; install it with pip install 'brecq[search]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, files: Sequence[Path | str]) -> None:
    from matplotlib import rc_context

    for file in files:
        metadata = {"Date": None} if str(file).endswith(".svg") else None  # the same chart is the same file
        with rc_context({"svg.hashsalt": "brecq"}):
            drawn = io.BytesIO()
            figure.savefig(drawn, dpi=130, metadata=metadata, format=Path(file).suffix[1:])
        write_file(Path(file), drawn.getvalue(), CheckpointError)


def _shown(bits: Sequence[int]) -> list[float]:
    """Heights: float is one step above 8, not 32."""
    return [min(width, 9.5) for width in bits]
