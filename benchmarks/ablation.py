"""What each choice in the recipe `fast` is worth: one changed at a time. ResNet-20 on CIFAR-10, several seeds.

    python benchmarks/ablation.py
    python benchmarks/ablation.py --settings W4A4 --seeds 0 1 2 3 4
    python benchmarks/ablation.py --base 'bias_lr=0 tuning=0' --only Fisher QDrop
    python benchmarks/ablation.py --also 'rounding_lr=0.05 batch_size=64' --also 'beta=10,2'
    python benchmarks/ablation.py --table

Mean ± standard deviation over the seeds. Finished cells are kept in benchmarks/results/ablation.jsonl and not
measured again.
"""

from __future__ import annotations

import argparse

from cells import Cell, bits, parse_recipe, parser, run_and_print, with_steps
from common import CIFAR, CIFAR_CALIBRATION, CIFAR_TEST, measure, use_threads

from brecq import QuantConfig, Recipe
from brecq.config import FLOAT
from brecq.errors import BrecqError

MEASURES = {
    "top1": ("top-1 accuracy in percent", 1.0, 2),
    "sqnr": ("SQNR of the logits in dB", 1.0, 2),
    "seconds": ("seconds to quantize", 1.0, 0),
    "cpu_seconds": ("processor seconds to quantize", 1.0, 0),
}


def main() -> None:
    options = arguments()
    use_threads(options.threads)
    run_and_print(options, list_cells(options), measure, MEASURES)


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "ablation.jsonl")
    found.set_defaults(seeds=[0, 1, 2])
    found.add_argument("--networks", nargs="+", choices=CIFAR, default=CIFAR[:1])
    found.add_argument("--settings", nargs="+", default=["W2A32", "W2A4"], metavar="WxAy")
    found.add_argument("--base", default="", metavar="'KEY=VALUE ...'", help="settings that all variants share")
    found.add_argument("--also", action="append", default=[], metavar="'KEY=VALUE ...'", help="one more variant")
    found.add_argument("--only", nargs="+", metavar="TEXT", help="variants whose name contains one of these")
    return found.parse_args()


def variants(base: Recipe) -> dict[str, Recipe]:
    """The recipe and its variants, by name."""
    steps = base.steps
    return {
        "fast": base,
        "start: rounding to nearest": base.replace(compensate=False),
        "start: closed form, correction=1": base.replace(correction=1.0),
        "loss: Fisher": base.replace(loss="fisher"),
        "loss: not normalized, λ = 0.01 on the sum": base.replace(normalize_loss=False, rounding_penalty=0.01),
        "QDrop: none": base.replace(qdrop=0.0),
        "biases: not learned in the blocks": base.replace(bias_lr=0.0),
        "end-to-end tuning: none": base.replace(tuning=0.0),
        "tuning: codes stay": base.replace(tune_codes_lr=0.0),
        "tuning: outputs alone": base.replace(tune_features=0.0),
        "blocks alone: neither biases nor tuning": base.replace(bias_lr=0.0, tuning=0.0),
        "weights first, then 1/4 more steps on activations": base.replace(joint=False, activation_steps=steps // 4),
        "nothing held out": base.replace(held_out=0.0),
        "last state, not the best": base.replace(keep_best=False),
        **{f"rounding lr {lr:g}": base.replace(rounding_lr=lr) for lr in (1e-3, 1e-2, 3e-2, 1e-1)},
        **{f"step size lr {lr:g}": base.replace(step_lr=lr) for lr in (1e-3, 3e-3, 1e-2)},
        **{f"tuning lr {lr:g}": base.replace(tune_lr=lr) for lr in (1e-3, 3e-3, 1e-2, 3e-2)},
        **{f"λ = {penalty:g}": base.replace(rounding_penalty=penalty) for penalty in (1.0, 10.0, 1000.0)},
        **{f"{share:g} × the steps": base.replace(steps=max(1, round(share * steps))) for share in (0.25, 0.5, 2, 5)},
    }


def about_activations(recipe: Recipe, base: Recipe) -> bool:
    """Whether a variant differs from `base` only in what is done to activations."""
    same = {name: getattr(base, name) for name in ("name", "qdrop", "step_lr", "joint", "activation_steps")}
    return recipe != base and recipe.replace(**same) == base


def list_cells(options: argparse.Namespace) -> list[Cell]:
    base = with_steps(parse_recipe("fast", options.base.split()), options.steps)
    chosen = variants(base)
    if options.only:
        chosen = {name: recipe for name, recipe in chosen.items() if any(text in name for text in options.only)}
    for text in options.also:
        recipe = parse_recipe("fast", text.split())
        chosen[text] = recipe if options.steps is None or "steps=" in text else recipe.replace(steps=options.steps)
    sizes = (CIFAR_CALIBRATION, CIFAR_TEST)
    cells = []
    for network in options.networks:
        cells.append(Cell(network, "float", "", *sizes))
        for name, recipe in chosen.items():
            for setting in options.settings:
                weights, activations = bits(setting)
                if activations == FLOAT and about_activations(recipe, base):
                    continue
                for seed in options.seeds:
                    config = QuantConfig(weights, activations, recipe=recipe, seed=seed)
                    cells.append(Cell(network, name, setting, *sizes, config))
    return cells


if __name__ == "__main__":
    try:
        main()
    except BrecqError as error:
        raise SystemExit(f"error: {error}") from None
