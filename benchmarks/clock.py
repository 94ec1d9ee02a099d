"""Accuracy against processor seconds: what each recipe reaches, and what it costs to get there.

    python benchmarks/clock.py --threads 1
    python benchmarks/clock.py --threads 1 --networks resnet20 --settings W2A32 --recipes instant fast
    python benchmarks/clock.py --threads 1 --validation      # on images that the tables do not use: choose by these
    python benchmarks/clock.py --networks efficientnet_lite0 --recipes fast --device cuda --jobs 6 --seeds 0 1 2
    python benchmarks/clock.py --table
    python benchmarks/clock.py --plot                        # docs/images/clock.png, of the cells in the tables

Top-1 accuracy is of images that nothing is chosen by: 4000 test images of CIFAR-10, the second half of the ImageNet
ones. The authors' own code with the published schedule, measured once on the same network and images, stands beside
them. Finished cells are kept in benchmarks/results/clock.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path

from cells import (
    VALIDATION,
    Cell,
    Values,
    add_jobs,
    bits,
    describe_steps,
    detail_of,
    parser,
    run_and_print,
    with_steps,
)
from common import CALIBRATION, CIFAR, IMAGENET, chosen_by, network, quality_on, quantized, reported, use_threads
from tables import AUTHORS, FAST, FLOAT, SHORT, THOROUGH, Show, newest

from brecq import QuantConfig, Recipe
from brecq.data import Dataset

SETTINGS = {"resnet20": ("W2A32", "W4A4", "W2A4", "W2A2"), "efficientnet_lite0": ("W4A32", "W4A8", "W4A4", "W2A8")}
RECIPES = ("rtn", "instant", "fast", "thorough", "paper", "official")
IMAGE = Path(__file__).resolve().parents[1] / "docs" / "images" / "clock.png"

MEASURES = {
    "top1": ("top-1 accuracy in percent", 1.0, 2),
    "agreement": ("agreement with float in percent", 1.0, 2),
    "sqnr": ("SQNR of the logits in dB", 1.0, 1),
    "cpu_seconds": ("processor seconds to quantize", 1.0, 0),
}


def main() -> None:
    options = arguments()
    if options.plot:
        draw()
        return
    use_threads(options.threads)
    measured = partial(measure_cell, device=options.device)
    run_and_print(options, list_cells(options), measured, MEASURES, apart=options.jobs > 1)
    if "resnet20" in options.networks and not options.validation:
        for setting, (top1, seconds) in AUTHORS.items():
            print(f"\nThe authors' code, resnet20 {setting}: {top1} % in {seconds} processor seconds.")


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "clock.jsonl")
    found.add_argument("--networks", nargs="+", choices=(*CIFAR, *IMAGENET), default=list(SETTINGS))
    found.add_argument("--settings", nargs="+", metavar="WxAy", help="(default: those of the network's table)")
    found.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    found.add_argument(
        "--paper-steps", type=float, nargs="+", default=[0.005, 0.05], metavar="X", help="shares of the paper's steps"
    )
    found.add_argument("--plot", action="store_true", help="measure nothing, draw what the tables show")
    found.add_argument("--calibration", type=int, metavar="N", help="calibration samples")
    found.add_argument("--validation", action="store_true", help="measure on the images to choose by")
    add_jobs(found)
    return found.parse_args()


def list_cells(options: argparse.Namespace) -> list[Cell]:
    detail, where = detail_of(options), ", on a GPU" * (options.device != "cpu")
    cells = []
    for name in options.networks:
        sizes = (options.calibration or CALIBRATION[name], len(data_of(name, detail)))
        cells.append(Cell(name, f"float{where}", "", *sizes, detail=detail))
        for setting in options.settings or SETTINGS.get(name, SETTINGS["resnet20"]):
            for row, config in configs(options, setting):
                for seed in options.seeds[:1] if config.method == "rtn" else options.seeds:
                    cells.append(Cell(name, row + where, setting, *sizes, replace(config, seed=seed), detail))
    return cells


def configs(options: argparse.Namespace, setting: str) -> list[tuple[str, QuantConfig]]:
    """Rows and what they are measured with."""
    found = []
    for name in options.recipes:
        if name == "rtn":
            found.append(("rounding to nearest", QuantConfig(*bits(setting), method="rtn")))
            continue
        recipe = Recipe.preset(name)
        if name == "instant":
            found.append((name, QuantConfig(*bits(setting), recipe=recipe)))
            continue
        for share in options.paper_steps if name in ("paper", "official") else (1.0,):
            changed = with_steps(recipe, options.steps, share)
            found.append((f"{name} ({describe_steps(changed)})", QuantConfig(*bits(setting), recipe=changed)))
    return found


def measure_cell(cell: Cell, device: str) -> Values:
    data = data_of(cell.network, cell.detail)
    if cell.config is None:
        return quality_on(cell.network, network(cell.network).model, data, device)
    result, cost = quantized(cell.network, cell.calibration, cell.config, device)
    return {**cost, **quality_on(cell.network, result.model, data, device)}


def draw() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    columns = SETTINGS["resnet20"]
    figure, axes = pyplot.subplots(1, len(columns), figsize=(3.2 * len(columns), 3.4), sharex=True)
    for axis, column in zip(axes, columns, strict=True):
        points = []
        for row in ("instant", *SHORT, FAST, THOROUGH):
            values = [record["values"] for record in newest("clock", "resnet20", column, Show(row))]
            if values:
                points.append([statistics.mean(each[key] for each in values) for key in ("cpu_seconds", "top1")])
                label = row.split(" (")[-1].removesuffix(" steps)")
                axis.annotate(label, points[-1], xytext=(4, -11), textcoords="offset points", fontsize=8)
        axis.semilogx(*zip(*points, strict=True), "o-", label="brecq")
        if column in AUTHORS:
            top1, seconds = AUTHORS[column]
            axis.plot(seconds, top1, "s", color="black", label="the authors' code")
        exact = newest("clock", "resnet20", column, FLOAT)[-1]["values"]["top1"]
        axis.axhline(exact, color="gray", linestyle=":", label="float")
        axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.set_title(column)
        axis.set_xlabel("processor seconds")
        axis.grid(alpha=0.3)
        axis.margins(y=0.12)
    axes[0].set_ylabel("top-1, percent")
    handles, labels = axes[columns.index("W2A4")].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(IMAGE, dpi=110)


def data_of(name: str, detail: str) -> Dataset:
    return chosen_by(name) if VALIDATION in detail else reported(name)


if __name__ == "__main__":
    main()
