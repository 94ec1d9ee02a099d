"""How much of a loss in average precision is chance: NanoDet-m on COCO, with pictures drawn again.

    python benchmarks/ap_chance.py --threads 1 --settings W4A8 --recipe instant

Precision is of 128 pictures of val2017. As many are drawn from these with replacement, again and again, and both
networks judged by the same ones (a paired bootstrap): the deviation of the difference says how far it might have come
out otherwise on other pictures. Finished cells are kept in benchmarks/results/ap_chance.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
import time

import tasks
import torch
from cells import Cell, Values, bits, describe_steps, parser, run_and_print, with_steps
from common import use_threads
from torch import nn

import brecq
from brecq import QuantConfig, Recipe, metrics
from brecq.data import Dataset
from brecq.metrics.detection import Boxes

DRAWS = 100
MEASURES = {
    "float": ("AP of the float network in percent", 1.0, 2),
    "quantized": ("AP in percent", 1.0, 2),
    "lost": ("AP lost", 1.0, 2),
    "deviation": ("standard deviation of the AP lost, over pictures drawn again", 1.0, 2),
}


def main() -> None:
    options = arguments()
    use_threads(options.threads)
    recipe = with_steps(Recipe.preset(options.recipe), options.steps).replace(batch_size=tasks.BATCH[tasks.NANODET])
    sizes = tasks.CALIBRATION[tasks.NANODET], tasks.SAMPLES[tasks.NANODET]
    row = f"{options.recipe} ({describe_steps(recipe)})" if recipe.steps else options.recipe
    cells = [
        Cell(tasks.NANODET, row, setting, *sizes, QuantConfig(*bits(setting), recipe=recipe, seed=seed))
        for setting in options.settings
        for seed in options.seeds
    ]
    run_and_print(options, cells, measure, MEASURES)


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "ap_chance.jsonl")
    found.add_argument("--settings", nargs="+", default=["W4A8"], metavar="WxAy")
    found.add_argument("--recipe", default="instant", choices=("instant", "fast"))
    return found.parse_args()


def measure(cell: Cell) -> Values:
    assert cell.config is not None
    model, data = tasks.network(cell.network), tasks.test_data(cell.network)
    began = time.process_time()
    result = brecq.quantize(model, tasks.calibration_data(cell.network), cell.config)
    cost = {"cpu_seconds": time.process_time() - began}
    found = [boxes_of(each, data) for each in (model, result.model)]
    everything = torch.arange(len(data))
    whole = [precision(each, data, everything) for each in found]
    generator = torch.Generator().manual_seed(0)
    lost = []
    for _ in range(DRAWS):
        drawn = torch.randint(len(data), (len(data),), generator=generator)
        float_ap, quantized_ap = (precision(each, data, drawn) for each in found)
        lost.append(float_ap - quantized_ap)
    deviation = statistics.stdev(lost)
    return {**cost, "float": whole[0], "quantized": whole[1], "lost": whole[0] - whole[1], "deviation": deviation}


@torch.no_grad()
def boxes_of(model: nn.Module, data: Dataset) -> list[Boxes]:
    """What a network finds in each picture."""
    metric = tasks.metric(tasks.NANODET)
    assert isinstance(metric, metrics.Detection)
    return [boxes for part in data.inputs[0].split(4) for boxes in metric.boxes(model(part))]


def precision(found: list[Boxes], data: Dataset, index: torch.Tensor) -> float:
    """AP on some of the pictures, in percent."""
    assert data.targets is not None
    metric = metrics.Detection(labels="index")
    metric.update([found[i] for i in index.tolist()], [data.targets[i] for i in index.tolist()])
    return metric.compute()["AP %"]


if __name__ == "__main__":
    main()
