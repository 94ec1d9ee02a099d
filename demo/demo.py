"""Quantize a real ImageNet network to 4-bit weights and 8-bit activations, and look at what it still recognizes.

    python demo/demo.py          # or: make demo

EfficientNet-lite0 is calibrated on crops of a few photographs that scikit-image and scikit-learn ship; nothing is
downloaded, and no photograph has a label. What comes out is compared with the float network on other photographs.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import skimage
import sklearn
import torch
from efficientnet_lite0 import build
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_1_Weights

import brecq
from brecq.cli.progress import make_progress
from brecq.cli.render import make_table
from brecq.data import Dataset, Preprocessing, load_data, random_crops, read_image
from brecq.units import format_bytes, format_seconds

CROPS = 256  # calibration inputs
STEPS = 100  # gradient steps per block; more of both gets closer to float
BATCH_SIZE = 16
HELD_OUT_CROPS = 196
IMAGENET_SAMPLES = 200

CALIBRATION_PHOTOS = (
    "astronaut.png", "brick.png", "china.jpg", "clock_motion.png", "coins.png", "flower.jpg", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
HELD_OUT_PHOTOS = ("camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png")
PHOTO_FOLDERS = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
IMAGENET = HERE.parent.parent / "shared" / "data" / "imagenet_val"  # optional
CLASSES = SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"]  # names only: torchvision downloads nothing for them
FILES = {
    "program.json": "the network: its operators and how they are connected",
    "weights.safetensors": "its weights packed, two in a byte; scales, zero points, biases",
    "report.json": "what was quantized, how, and how well each block came out",
    "manifest.json": "versions and settings; checksums of the files above",
    "timing.json": "how long it took",
}


@dataclass
class Entry:
    """One of the networks side by side. `size` is in bytes, `seconds` is what making it took."""

    name: str
    model: nn.Module
    size: int
    seconds: float | None = None
    held_out: brecq.Evaluation | None = None
    imagenet: brecq.Evaluation | None = None


def main() -> None:
    began = time.perf_counter()
    for name in ("torch.utils._pytree", "torch.utils.cpp_extension"):  # they warn of nothing that matters here
        logging.getLogger(name).setLevel(logging.ERROR)
    console = Console(highlight=False)
    model, preprocessing = build()
    tell_plan(console, model)

    calibration = random_crops(photos(CALIBRATION_PHOTOS), CROPS, preprocessing, seed=0)
    whole = torch.stack([preprocessing(photo) for photo in photos(HELD_OUT_PHOTOS)])
    crops = random_crops(photos(HELD_OUT_PHOTOS), HELD_OUT_CROPS, preprocessing, seed=1)
    entries, result = quantize(console, model, calibration)
    compare(console, entries, Dataset((torch.cat([whole, crops]),)), load_imagenet(preprocessing))
    show_comparison(console, entries)
    show_predictions(console, entries, whole)

    result.metadata.update(
        source={"spec": f"{relative(HERE / 'efficientnet_lite0.py')}:build", "weights": None, "submodule": None},
        preprocessing=preprocessing.to_dict(),
    )
    result.save(OUT)
    show_folder(console)
    elapsed = format_seconds(time.perf_counter() - began)
    console.print(f"\nAll this took {elapsed} on {torch.get_num_threads()} threads.")


def tell_plan(console: Console, model: nn.Module) -> None:
    """What is about to happen."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"[bold]EfficientNet-lite0[/], an ImageNet classifier with {parameters / 1e6:.1f} million parameters, goes "
        f"from 32-bit floating point to [bold]4-bit weights and 8-bit activations[/]. All that brecq sees are {CROPS} "
        f"crops of {len(CALIBRATION_PHOTOS)} photographs, without labels. The result is compared with the float "
        f"network on {len(HELD_OUT_PHOTOS)} other photographs and {HELD_OUT_CROPS} crops of them.\n"
    )


def quantize(console: Console, model: nn.Module, calibration: Tensor) -> tuple[list[Entry], brecq.QuantResult]:
    """The float network, its baseline and the reconstructed one; and all about the last."""
    # crops of twelve photographs are too few to tune the whole network by: it gains nothing on those held out
    recipe = brecq.Recipe.preset("fast").replace(name="demo", steps=STEPS, batch_size=BATCH_SIZE, tuning=0.0)
    config = brecq.QuantConfig(weights=4, activations=8, recipe=recipe)

    console.print("[bold]1. The baseline: every weight rounded to the nearest 4-bit value[/]")
    with console.status("choosing the ranges of weights and activations"):
        nearest = brecq.quantize(model, calibration, dataclasses.replace(config, method="rtn"))
    console.print(f"done in {format_seconds(nearest.report.seconds)}\n")

    console.print("[bold]2. Reconstruction: learn, block by block, which weights to round up or down[/]")
    progress = make_progress(console)
    try:
        learned = brecq.quantize(model, calibration, config, progress=progress)
    finally:
        progress.close()
    console.print(f"done in {format_seconds(learned.report.seconds)}\n")

    results = {"rounding to nearest": nearest, "reconstructed": learned}
    return [
        Entry("float", model, learned.float_bytes()),
        *(Entry(name, each.model, each.weight_bytes(), each.report.seconds) for name, each in results.items()),
    ], learned


def compare(console: Console, entries: list[Entry], held_out: Dataset, imagenet: Dataset | None) -> None:
    """Measure every network on what none of them was calibrated on."""
    reference = entries[0].model
    with console.status("measuring the three networks"):
        for entry in entries:
            if entry.model is reference:
                entry.held_out = brecq.Evaluation(len(held_out), agreement=100.0, sqnr=math.inf)
            else:
                entry.held_out = brecq.evaluate(entry.model, held_out, reference=reference)
            if imagenet is not None:
                entry.imagenet = brecq.evaluate(entry.model, imagenet)


def show_comparison(console: Console, entries: list[Entry]) -> None:
    """The networks side by side, and what the columns mean."""
    console.print("[bold]3. The three networks side by side[/]\n")
    columns: dict[str, list[str]] = {"weights": [format_bytes(entry.size) for entry in entries]}
    held_out = [entry.held_out for entry in entries if entry.held_out is not None]
    columns["agreement\n%"] = [f"{each.agreement:.1f}" for each in held_out]
    columns["SQNR\ndB"] = ["∞" if each.sqnr == math.inf else f"{each.sqnr:.1f}" for each in held_out]
    imagenet = [entry.imagenet for entry in entries if entry.imagenet is not None]
    if imagenet:
        columns["ImageNet\ntop-1 %"] = [f"{each.top1:.1f}" for each in imagenet]
    columns["time"] = ["" if entry.seconds is None else format_seconds(entry.seconds) for entry in entries]
    table = make_table("", ["", *columns], numeric=columns)
    for index, entry in enumerate(entries):
        table.add_row(entry.name, *(cells[index] for cells in columns.values()))
    console.print(table)
    console.print(
        f"agreement  share of {held_out[0].samples} held-out pictures with the float network's top class\n"
        "SQNR       float outputs over the error made in them; 6 dB more halve the error"
    )
    if imagenet:
        console.print(f"ImageNet   accuracy on {imagenet[0].samples} of its validation images")
    console.print()


def show_predictions(console: Console, entries: list[Entry], pictures: Tensor) -> None:
    """What the networks take the held-out photographs for. `pictures` is float32 [photographs, 3, 224, 224]."""
    table = make_table("", ["photograph", *(entry.name for entry in entries)])
    with torch.inference_mode():
        columns = [[describe(scores) for scores in entry.model(pictures).softmax(1)] for entry in entries]
    for name, *cells in zip(HELD_OUT_PHOTOS, *columns, strict=True):
        table.add_row(Path(name).stem, *cells)
    console.print("[bold]4. What they see in the held-out photographs[/]\n")
    console.print(table)


def describe(probabilities: Tensor) -> str:
    """The two most likely classes of one picture: `95 % espresso`. `probabilities` is [1000]."""
    best = probabilities.topk(2)
    return "\n".join(
        f"{100 * value:.0f}\u00a0% {CLASSES[index]}"
        for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )


def show_folder(console: Console) -> None:
    """What was saved, and what to do with it."""
    folder = relative(OUT)
    console.print(f"[bold]5. Saved in {folder}/[/]\n")
    for name, meaning in FILES.items():
        size = (OUT / name).stat().st_size
        console.print(f"{name:20} {format_bytes(size):>8}   {meaning}", soft_wrap=True)
    console.print(
        f"\nTo use it:    import brecq; network = brecq.load({str(folder)!r}).model\n"
        f"To test it:   brecq evaluate {folder} --data YOUR_PICTURES "
        f"--model {relative(HERE / 'efficientnet_lite0.py')}:build",
        soft_wrap=True,
        markup=False,
    )


def photos(names: Sequence[str]) -> list[Image.Image]:
    """Photographs of scikit-image and scikit-learn, RGB."""
    found = []
    for name in names:
        path = next((folder / name for folder in PHOTO_FOLDERS if (folder / name).is_file()), None)
        if path is None:
            raise SystemExit(
                f"{name} is in neither {' nor '.join(map(str, PHOTO_FOLDERS))}: pip install 'brecq[demo]'"
            )
        found.append(read_image(path))
    return found


def load_imagenet(preprocessing: Preprocessing) -> Dataset | None:
    """Labelled validation images where they are at hand; they are 227 pixels square already."""
    if not IMAGENET.is_dir():
        return None
    return load_data(IMAGENET, preprocessing.replace(resize=227), IMAGENET_SAMPLES, seed=0)


def relative(path: Path) -> Path:
    """`path` as seen from the working directory, if it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
