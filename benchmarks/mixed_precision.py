"""Mixed precision against uniform precision at equal budgets: accuracy after reconstruction.

    python benchmarks/mixed_precision.py --networks resnet20 --seeds 0 1
    python benchmarks/mixed_precision.py --networks efficientnet_lite0 --activations 32 --steps 30 --calibration 128 \
        --table-images 64 --table-cross lowest --samples 400
    python benchmarks/mixed_precision.py --budget latency --bits 2 4 8 --networks resnet20 --seeds 0 1
    python benchmarks/mixed_precision.py --table

First and last layer have 8 bits, activations too unless --activations says otherwise; weights choose from --bits.
Budgets lie between the costs of uniform 2 and 4 bits, at the shares --shares of the way: 0.5 of the size is uniform 3
bits. Rows:

    uniform         the widest uniform precision within the budget
    exact           integer program, Fisher information with cross terms
    genetic         the paper's algorithm, on the same predicted loss
    no cross terms  exact, diagonal terms only
    diagonal Fisher exact, with the paper's equation 10 in place of the whole Fisher information
    eight draws     exact, the Fisher information estimated with eight random vectors a sample instead of one
    relative error  exact, on the relative error of each block's output: no Fisher information
    random          a random allocation that fills the budget; another one for each seed
    reconstructed   exact, with weights learned at every bit-width (60 steps) instead of rounded to nearest

Equal allocations are one cell and measured once. Sensitivity tables (rounding to nearest, seed 0) are kept in
benchmarks/results/tables/, cells in benchmarks/results/mixed_precision.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from cells import RESULTS, Cell, Results, parser, run, tables
from common import CIFAR, CIFAR_TEST, IMAGENET, IMAGENET_TEST, calibration_data, measure, network, use_threads

from brecq import Accelerator, BitAllocation, QuantConfig, Recipe, SensitivityTable, measure_sensitivity, search
from brecq.errors import CheckpointError
from brecq.precision.budget import Budget, Cost, describe
from brecq.precision.options import Cross, Quality
from brecq.precision.problem import build, uniform_choices

MEASURES = {
    "top1": ("top-1 accuracy in percent", 1.0, 2),
    "agreement": ("agreement with float in percent", 1.0, 2),
    "sqnr": ("SQNR of the logits in dB", 1.0, 2),
}
ROWS: dict[str, dict[str, Any]] = {
    "exact": {},
    "genetic": {"algorithm": "genetic"},
    "no cross terms": {"cross": False},
    "diagonal Fisher": {"metric": "fisher_diagonal"},
    "eight draws": {"draws": 8},
    "relative error": {"metric": "relative"},
    "random": {"algorithm": "random"},
    "reconstructed": {"quality": "reconstructed"},
}
TABLE_STEPS = 60
RECIPE = Recipe.preset("fast").replace(steps=400, bias_lr=0.0, held_out=0.0, tuning=0.0)
"""Rounding alone, block by block: without the end-to-end tuning, which would take as long again."""


def main() -> None:
    options = arguments()
    use_threads(options.threads)
    results = Results(options.results)
    cells = [cell for name in options.networks for cell in list_cells(name, options)]
    if not options.table:
        run(cells, results, measure)
    print(tables(cells, results, MEASURES))


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "mixed_precision.jsonl")
    found.add_argument("--networks", nargs="+", choices=CIFAR + IMAGENET, default=(CIFAR[0], IMAGENET[0]))
    found.add_argument("--budget", choices=("size", "bops", "latency"), default="size")
    found.add_argument("--shares", type=float, nargs="+", default=(0.125, 0.25, 0.5, 0.625, 0.75), metavar="X")
    found.add_argument("--bits", type=int, nargs="+", default=(2, 3, 4, 8), metavar="N")
    found.add_argument("--hardware", default="edge-fpga", help="accelerator preset or TOML file, for latency")
    found.add_argument("--rows", nargs="+", choices=ROWS, default=tuple(row for row in ROWS if row != "reconstructed"))
    found.add_argument("--calibration", type=int, default=512, metavar="N", help="calibration images")
    found.add_argument("--activations", type=int, default=8, metavar="N", help="bits; 32 quantizes weights alone")
    found.add_argument(
        "--table-images", type=int, metavar="N", help="images for sensitivities (default: --calibration)"
    )
    found.add_argument("--table-cross", choices=("lowest", "all"), default="all", help="cross terms measured")
    found.add_argument("--samples", type=int, metavar="N", help="test images (default: all)")
    found.set_defaults(steps=100)
    return found.parse_args()


def list_cells(name: str, options: argparse.Namespace) -> Iterator[Cell]:
    """All cells of a network, seed after seed; measures its sensitivities where they are not known."""
    images = options.table_images or options.calibration
    table = sensitivities(name, images, options.table_cross)
    cost: Cost = options.budget
    hardware = Accelerator.load(options.hardware) if cost == "latency" else None
    samples = options.samples or (CIFAR_TEST if name in CIFAR else IMAGENET_TEST)
    restricted = only(table, options.bits)
    problem = build(restricted, [], hardware, "fisher")

    def price(bits: int) -> float:
        return float(problem.costs[cost](uniform_choices(problem, bits)[None])[0])

    uniform = {bits: price(bits) for bits in range(2, 5) if bits in options.bits}
    base = QuantConfig(2, options.activations, recipe=RECIPE.replace(steps=options.steps))
    limits = {share: uniform[2] + share * (uniform[4] - uniform[2]) for share in options.shares}
    columns = {share: f"{cost} ≤ {describe(cost, limit)}" for share, limit in limits.items()}
    for seed in options.seeds:
        config = replace(base, seed=seed)
        for share, limit in limits.items():
            widest = max(bits for bits, value in uniform.items() if value <= limit)
            yield Cell(name, "uniform", columns[share], options.calibration, samples, replace(config, weights=widest))
        for row in options.rows:
            for share, limit in limits.items():
                settings = dict(ROWS[row])
                quality, draws = settings.pop("quality", "fast"), settings.pop("draws", 1)
                chosen_from = only(sensitivities(name, images, options.table_cross, quality, draws), options.bits)
                found = search(chosen_from, Budget(cost, limit), hardware=hardware, seed=seed, **settings)
                tell(name, columns[share], row, found)
                yield Cell(name, row, columns[share], options.calibration, samples, deliver(found, config))
        for bits, value in uniform.items():
            column = f"uniform {bits}: {describe(cost, value)}"
            yield Cell(name, "uniform", column, options.calibration, samples, replace(config, weights=bits))


def deliver(allocation: BitAllocation, config: QuantConfig) -> QuantConfig:
    """The configuration of an allocation: weights as it says, activations as `config` says; a uniform one as uniform
    precision is written, to be the same cell."""
    bits = {layer.weights for layer in list(allocation.layers.values())[1:-1]}
    if len(bits) == 1:
        return replace(config, weights=bits.pop())
    if config.activations == allocation.config.activations:
        return allocation.apply(config)
    layers = {name: layer._replace(activations=config.activations) for name, layer in allocation.layers.items()}
    own = replace(allocation.config, activations=config.activations)
    return replace(allocation, layers=layers, config=own).apply(config)


@cache
def sensitivities(name: str, images: int, cross: Cross, quality: Quality = "fast", draws: int = 1) -> SensitivityTable:
    parts = [name, images, cross, *([quality] if quality != "fast" else []), *([f"{draws}draws"] if draws > 1 else [])]
    folder = RESULTS / "tables" / "-".join(map(str, parts))
    try:
        return SensitivityTable.load(folder)
    except CheckpointError:
        print(f"measuring the sensitivities of {name}", file=sys.stderr)
    config = QuantConfig(4, 8, recipe=RECIPE.replace(steps=TABLE_STEPS))
    data = calibration_data(name, images)
    table = measure_sensitivity(network(name).model, data, config, quality=quality, cross=cross, draws=draws)
    table.save(folder)
    print(f"{len(table.terms)} terms, {table.block_forwards} block-forwards, {table.seconds:.0f} s", file=sys.stderr)
    return table


def only(table: SensitivityTable, bits: tuple[int, ...]) -> SensitivityTable:
    """The table with these bits alone to choose from."""
    free = {knob.name for knob in table.knobs if knob.free}
    knobs = tuple(replace(k, bits=tuple(sorted(bits))) if k.name in free else k for k in table.knobs)
    terms = tuple(term for term in table.terms if set(term.bits.values()) <= set(bits))
    return replace(table, knobs=knobs, terms=terms)


def tell(name: str, column: str, row: str, found: BitAllocation) -> None:
    bits = " ".join(str(layer.weights) for layer in found.layers.values())
    print(f"{name} {column} {row}: predicted {found.loss:.4g}, bits {bits}", file=sys.stderr)


if __name__ == "__main__":
    main()
