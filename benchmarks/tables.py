"""The tables of the documentation, written between their markers from what was measured.

    python benchmarks/tables.py             # fills README.md and docs/*.md in
    python benchmarks/tables.py --check     # changes nothing; fails where a page says something else

A page holds `<!-- table: NAME -->`, the table, and `<!-- end -->`; `TABLES` says what NAME is, `measured.py` what a
cell is. So a page follows when a cell is measured again, and only then.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import chosen
from measured import Lines, Show, cell, grid, name_of, newest, records, written

ROOT = Path(__file__).resolve().parents[1]
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n\n)(.*?)(\n\n<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """A page with its tables written in.

    Raises:
        KeyError: a marker names no table.
    """
    return MARKED.sub(lambda found: f"{found[1]}{written(TABLES[found[2]]())}{found[4]}", text)


def pages() -> list[Path]:
    """The pages with markers."""
    every = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    return [page for page in every if MARKED.search(page.read_text(encoding="utf-8"))]


def main() -> None:
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if filled(text) != text:
            stale.append(str(page.relative_to(ROOT)))
            if "--check" not in sys.argv:
                page.write_text(filled(text), encoding="utf-8")
    if stale and "--check" in sys.argv:
        raise SystemExit(f"stale: {', '.join(stale)}; run python benchmarks/tables.py")
    print("written:" if stale else "nothing to do", *stale)


FLOAT, NEAREST = Show("float"), Show("rounding to nearest")
CLOCK = ("W2A32", "W4A4", "W3A3", "W2A4", "W2A2")
FAST = "fast (300 steps)"
ON_GPU = "fast (300 steps of 32), on a GPU"
EXPORTS = ("efficientnet_lite0", "resnet20", "mobilenetv3_small", "unet", "nanodet_m", "vit")
EXPORTED = {
    "ONNX Runtime": "onnxruntime", "OpenVINO": "openvino", "LiteRT": "litert", "TensorRT": "tensorrt",
    "Qualcomm": "qualcomm", "CMSIS-NN": "cmsis-nn", "web": "onnxruntime", "PyTorch": None, "QONNX": None,
}  # fmt: skip
"""Rows of deploy.py, and the targets that their networks are initialized for."""
SHORT = ("fast (25 steps)", "fast (100 steps)")
THOROUGH = "thorough (1200 steps)"
PUBLISHED = ("official (1000 + 1000 steps)", "official (1000 + 250 steps)", "paper (1000 + 1000 steps)")
"""The published method in brecq, steps on weights and on step sizes."""
AUTHORS = {"W2A32": (78.95, 2103), "W2A4": (77.25, 3040)}
"""ResNet-20: top-1 and processor seconds of the authors' code, 20 000 steps a block on the weights, 5 000 on steps."""


def clock(network: str, columns: Sequence[str], recipes: Sequence[str], authors: bool = False) -> Lines:
    """What each of `recipes` reaches and costs; `authors`: beside what the authors' code did, see clock.py."""
    lines = grid("clock", network, columns, {"float": FLOAT, **{row: Show(row) for row in (NEAREST.row, *recipes)}})
    if authors:
        lines.append(
            ["the authors' code, 20 000 steps", *(f"{AUTHORS[c][0]}" if c in AUTHORS else "" for c in columns)]
        )
    for title, key, digits in (
        ("agreement with float in percent", "agreement", 2),
        ("SQNR of the logits in dB", "sqnr", 1),
        ("processor seconds to quantize", "cpu_seconds", 0),
    ):
        lines += grid("clock", network, columns, {f"{title}, {row}": Show(row, key, digits) for row in recipes})[1:]
    if authors:
        seconds = (f"{AUTHORS[c][1]:,}".replace(",", " ") if c in AUTHORS else "" for c in columns)
        lines.append(["processor seconds, the authors' code", *seconds])
    return [[name_of(network), *columns], *lines[1:]]


def kinds() -> Lines:
    """What it is worth that one kind of layer has weights of 8 bits, see kinds.py."""
    layers = ("depthwise", "1×1, widening", "1×1, narrowing")
    rows = ("everything as it is", *(f"{layer}: weights at 8 bits" for layer in layers))
    numbers = {"top-1, %": ("top1", 2), "SQNR, dB": ("sqnr", 1), "weights, kB": ("weight_bytes", 0, 1e-3)}
    shown = [
        [cell("kinds", "efficientnet_lite0", "W2A8", Show(row, *each)) for each in numbers.values()] for row in rows
    ]
    return [["", *numbers], *([row, *cells] for row, cells in zip(rows, shown, strict=True))]


def headline() -> Lines:
    """The README's table: a row for each network and width."""
    lite, resnet = "EfficientNet-lite0, ImageNet subset, `fast`", "ResNet-20, CIFAR-10, `fast`"
    instant = "ResNet-20, CIFAR-10, `instant`"
    squeeze = "SqueezeNet 1.1, ImageNet subset, `fast`"
    rows = [
        *((lite, "efficientnet_lite0", bits, FAST) for bits in ("W4A32", "W4A8", "W4A4", "W2A8")),
        *((squeeze, "squeezenet1_1", bits, FAST) for bits in ("W4A4", "W2A8")),
    ]
    rows += [(resnet, "resnet20", bits, FAST) for bits in CLOCK]
    rows += [(instant, "resnet20", bits, "instant") for bits in ("W2A32", "W2A4")]
    lines, last = [["network", "bits", "float", "rounding to nearest", "brecq"]], ""
    for name, network, bits, row in rows:
        shown = [cell("clock", network, bits, show) for show in (FLOAT, NEAREST, Show(row))]
        lines.append(["" if name == last else name, bits, *shown])
        last = name
    return lines


def tasks(network: str, keys: dict[str, tuple[str, int]]) -> Lines:
    """Every row that was measured, under each of the task's numbers."""
    mine = [each for each in records("tasks") if each["network"] == network]
    named = dict.fromkeys(each["row"] for each in mine if "validation" not in each["key"].get("detail", ""))
    shown = {(title, row): Show(row, *keys[title]) for title in keys for row in named if row != "float"}
    rows = {f"{title}, {row}": show for (title, row), show in shown.items()}
    return grid("tasks", network, ("W8A8", "W4A8", "W4A4"), rows)


def mixed() -> Lines:
    """Allocations of equal size; those that chose the bits of another one were not measured again."""
    chosen_by = {
        "exact": "exact", "no cross terms": "exact, without cross terms",
        "diagonal Fisher": "exact, the paper's diagonal", "random": "random",
    }  # fmt: skip
    rows = [
        ("size ≤ 84.81KB", {"uniform": "2 bits everywhere"}, "76.43 kB"),
        ("size ≤ 84.81KB", {"exact": "exact"}, "84.81 kB"),
        ("size ≤ 93.18KB", chosen_by, "93.18 kB"),
        ("size ≤ 109.9KB", {"uniform": "3 bits everywhere", **chosen_by}, "109.9 kB"),
        ("uniform 4: 143.4KB", {"uniform": "4 bits everywhere"}, "143.4 kB"),
    ]
    shown = (("top1", 2), ("agreement", 2), ("sqnr", 1))
    lines = [["weights", "bits", "top-1, %", "agreement, %", "SQNR, dB"]]
    for column, names, size in rows:
        for row, name in names.items():
            cells = [cell("mixed_precision", "resnet20", column, Show(row, *each)) for each in shown]
            lines.append([size, name, *cells])
    return lines


def calibrated() -> Lines:
    """What calibration data is worth: a row a source."""
    sources = {
        "real images": "real images", "`fast`": "distilled: `fast`",
        "pixels, from noise (ZeroQ)": "distilled: pixels, from noise, without coarse steps, swing, shifts and flips "
        "(ZeroQ)", "`leaves`": "`leaves`: dead leaves, not distilled",
        "ImageNet photographs, resized": "out-of-domain images, resized",
        "crops of twelve photographs": "crops of twelve photographs",
        "Gaussian noise": "Gaussian noise of the right mean and variance",
    }  # fmt: skip
    shown = (("W4A4", "top1", 2), ("W4A4", "agreement", 2), ("W2A4", "top1", 2), ("W2A4", "agreement", 2),
             ("", "statistics", 2), ("", "tail", 1))  # fmt: skip
    lines = [["calibrated on", "W4A4: top-1, %", "agreement, %", "W2A4: top-1, %", "agreement, %",
              "statistics off", "largest input"]]  # fmt: skip
    for name, row in sources.items():
        lines.append([name, *(cell("data_free", "resnet20", bits, Show(row, *key)) for bits, *key in shown)])
    return lines


def in_parts() -> Lines:
    """Detectors of torchvision: their captured parts in float, and rounded."""
    names = {"RetinaNet": "retinanet_resnet50_fpn", "Faster R-CNN": "fasterrcnn_resnet50_fpn"}
    worst = "SQNR of the worst output in dB, rounding to nearest, "
    shown = {
        "boxes that differ, captured parts in float, percent": Show("float", "flips", 1),
        **{worst + bits: Show(NEAREST.row, "sqnr", 1, column=bits) for bits in ("W8A8", "W4A8")},
        "blocks": Show(NEAREST.row, "blocks", 0, column="W8A8"),
        "processor seconds, W8A8": Show(NEAREST.row, "cpu_seconds", 0, column="W8A8"),
    }
    lines = [[name, *(cell("tasks", each, "W8A8", show) for each in names.values())] for name, show in shown.items()]
    return [["", *names], *lines]


def matrix() -> Lines:
    """What `deploy.py --matrix` measures: networks and measures down, targets across."""
    keys = {
        "file, MB": ("megabytes", 2), "codes that differ": ("codes", 0), "outputs equal, %": ("simulator", 1),
        "steps off": ("mean", 2), "predictions equal, %": ("agreement", 1), "steps apart": ("quantized", 2),
        "times faster": ("speed_1", 2),
    }  # fmt: skip
    lines = [["", *EXPORTED]]
    for network in EXPORTS:
        for number, (title, (key, digits)) in enumerate(keys.items()):
            cells = [_exported(network, target, key, digits, refused=not number) for target in EXPORTED]
            lines += [[f"{name_of(network)}: {title}", *cells]] if any(cells) else []
    return lines


def _exported(network: str, target: str, key: str, digits: int, refused: bool) -> str:
    where = {"target": EXPORTED[target]}
    if refused and newest("deploy", network, "W8A8", Show(target, "refused", where=where)):
        return "refused"
    return cell("deploy", network, "W8A8", Show(target, key, digits, where=where))


def litert(network: str, columns: tuple[str, ...], more: Mapping[str, tuple[str, int]] = {}) -> Lines:
    """A network for LiteRT, and `more` of its measures."""
    keys = {
        "file, MB": ("megabytes", 2), "over the ideal size, %": ("over", 1), "codes that differ": ("codes", 0),
        "outputs equal to the simulator's, %": ("simulator", 2), "predictions equal to its, %": ("same", 1),
        "predictions that are the fake-quantized network's, %": ("agreement", 1),
        "times less processor time than float": ("speed_1", 2), **more,
    }  # fmt: skip
    shown = {name: Show("LiteRT", *each, where={"target": "litert"}) for name, each in keys.items()}
    return grid("deploy", network, columns, shown)


DETECTED = {
    "AP": ("AP %", 2), "AP50": ("AP50 %", 2), "boxes that changed, percent": ("flips", 1),
    "SQNR of the worst output in dB": ("sqnr", 1), "processor seconds": ("cpu_seconds", 0),
}  # fmt: skip
SEGMENTED = {"pixels of the same class, percent": ("pixel accuracy %", 2), "mIoU, percent": ("mIoU %", 1)}
RESTORED = {"PSNR in dB": ("PSNR dB", 2), "SQNR of the output in dB": ("sqnr", 1)}

TABLES: dict[str, Callable[[], Lines]] = {
    "data-free": calibrated,
    "mixed-precision": mixed,
    "headline": headline,
    "clock-resnet20": partial(clock, "resnet20", CLOCK, ("instant", *SHORT, FAST, THOROUGH, *PUBLISHED), authors=True),
    "clock-efficientnet_lite0": partial(
        clock,
        "efficientnet_lite0",
        ("W4A32", "W4A8", "W4A4", "W2A8"),
        ("instant", "fast (75 steps of 32)", FAST, ON_GPU),
    ),
    "clock-resnet32": partial(clock, "resnet32", ("W2A32", "W2A2"), ("instant", FAST)),
    "clock-squeezenet1_1": partial(clock, "squeezenet1_1", ("W2A8", "W4A4"), ("instant", FAST)),
    "tasks-nanodet_m": partial(tasks, "nanodet_m", DETECTED),
    "tasks-deeplabv3_mnv2": partial(tasks, "deeplabv3_mnv2", SEGMENTED),
    "tasks-in-parts": in_parts,
    "tasks-denoiser": partial(tasks, "denoiser", RESTORED),
    "kinds-efficientnet_lite0": kinds,
    "chosen-start": chosen.start,
    "chosen-outputs": chosen.outputs,
    "chosen-parts": chosen.parts,
    "chosen-blocks": chosen.blocks,
    "chosen-mirrored": chosen.mirrored,
    "chosen-loss": chosen.losses,
    "chosen-batch": chosen.batches,
    "deploy-matrix": matrix,
    "deploy-four-bits": partial(litert, "efficientnet_lite0", ("W4A8",)),
    "deploy-sixteen-bits": partial(
        litert,
        "resnet20",
        ("W8A16", "W4A16"),
        {"top-1 of the float network, %": ("top1_float", 2), "top-1 of the file, %": ("top1_file", 2)},
    ),
}

if __name__ == "__main__":
    main()
