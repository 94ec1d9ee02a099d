"""Which layers lose it: one kind of layer at a time has weights of 8 bits, everything else as few as the setting says.

    python benchmarks/kinds.py --threads 1 --networks efficientnet_lite0 --settings W2A8

The recipe is `instant`, from 128 images; top-1 and SQNR are of the validation images, which recipes are chosen by.
Finished cells are kept in benchmarks/results/kinds.jsonl.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

from cells import VALIDATION, Cell, Values, bits, parser, run_and_print
from common import IMAGENET, chosen_by, network, quality_on, quantized, use_threads
from torch import nn

from brecq import LayerRule, QuantConfig, Recipe

CALIBRATION = 128
KINDS = ("depthwise", "1×1, widening", "1×1, narrowing", "k×k")
MEASURES = {
    "top1": ("top-1 accuracy in percent", 1.0, 2),
    "sqnr": ("SQNR of the logits in dB", 1.0, 1),
    "weight_bytes": ("weights in kB", 1e-3, 0),
}


def main() -> None:
    options = arguments()
    use_threads(options.threads)
    run_and_print(options, list(cells_of(options)), measure, MEASURES)


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "kinds.jsonl")
    found.add_argument("--networks", nargs="+", choices=IMAGENET, default=list(IMAGENET[:1]))
    found.add_argument("--settings", nargs="+", default=["W2A8"], metavar="WxAy")
    return found.parse_args()


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    for name in options.networks:
        layers = layers_by_kind(network(name).model)
        for setting in options.settings:
            config = QuantConfig(*bits(setting), recipe=Recipe.preset("instant"))
            yield Cell(name, "everything as it is", setting, CALIBRATION, 0, config, VALIDATION)
            for kind in (kind for kind in KINDS if layers[kind]):
                ruled = config.replace(rules=tuple(LayerRule(layer, weights=8) for layer in layers[kind]))
                yield Cell(name, f"{kind}: weights at 8 bits", setting, CALIBRATION, 0, ruled, VALIDATION)


def layers_by_kind(model: nn.Module) -> dict[str, list[str]]:
    """Names of convolutions by `KINDS`, without the first, which has 8 bits anyway."""
    found = defaultdict(list)
    convolutions = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    for name, layer in convolutions[1:]:
        if layer.groups > 1:
            kind = "depthwise"
        elif layer.kernel_size != (1, 1):
            kind = "k×k"
        else:
            kind = "1×1, widening" if layer.out_channels > layer.in_channels else "1×1, narrowing"
        found[kind].append(name)
    return found


def measure(cell: Cell) -> Values:
    assert cell.config is not None
    result, cost = quantized(cell.network, cell.calibration, cell.config)
    return {**cost, **quality_on(cell.network, result.model, chosen_by(cell.network))}


if __name__ == "__main__":
    main()
