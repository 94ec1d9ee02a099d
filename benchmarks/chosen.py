"""Tables of what recipes are chosen by: cells of choose.py with top-1 accuracy and SQNR of the logits in each.

A row is a network at a setting, with what all of its cells have in common; a column is what differs between them. The
cells are found by the names that choose.py gave them: `fast correction=1 steps=60 from 128`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from measured import Lines, Show, cell, name_of


@dataclass(frozen=True)
class Compared:
    """A row: `recipe` and `rest` stand before and behind what a column changes; `note` tells rows apart. `wider`:
    whether the first layer's output had more bits than other activations, where that makes a difference."""

    network: str
    column: str
    rest: str = ""
    note: str = ""
    recipe: str = "fast"
    wider: bool | None = None

    def cell(self, change: str) -> str:
        """`81.75 %, 10.61 dB`, empty where nothing was measured."""
        row = " ".join(filter(None, [self.recipe, change, self.rest]))
        where = {} if self.wider is None or self.column.endswith(("A8", "A32")) else {"first_last_outputs": self.wider}
        top1, sqnr = (
            cell("choose", self.network, self.column, Show(row, *each, where=where))
            for each in (("top1", 2), ("sqnr", 2))
        )
        return f"{top1} %, {sqnr} dB" if top1 else ""

    def line(self, changes: Sequence[str]) -> list[str]:
        """The row of a table."""
        name = ", ".join(filter(None, [name_of(self.network), self.column, self.note]))
        return [name, *map(self.cell, changes)]


LITE, SQUEEZE = "steps=60 batch_size=16 from 128", "steps=75 batch_size=16 from 256"
INSTANT = {"note": "`instant`", "recipe": "instant"}
STARTS = {
    "1 (GPTAQ)": "correction=1",
    "0.5": "correction=0.5",
    "0 (GPTQ)": "correction=0",
    "rounding to nearest": "compensate=no",
}


def start() -> Lines:
    """What learning starts from."""
    rows = [
        *(Compared("efficientnet_lite0", column, LITE) for column in ("W4A8", "W4A4", "W2A8")),
        *(Compared("squeezenet1_1", column, SQUEEZE) for column in ("W4A4", "W2A8")),
        *(Compared("resnet20", column) for column in ("W2A32", "W4A4", "W3A3", "W2A4", "W2A2")),
        Compared("resnet32", "W2A2"),
        Compared("efficientnet_lite0", "W4A32", LITE),
        *(Compared("squeezenet1_1", column, SQUEEZE) for column in ("W4A32", "W2A32")),
        Compared("resnet20", "W2A2", "steps=100", "100 steps"),
        *(Compared("resnet20", column, "steps=25", "25 steps") for column in ("W2A2", "W3A3", "W4A4")),
        Compared("efficientnet_lite0", "W4A4", LITE.replace("60", "20"), "20 steps"),
        *(Compared("efficientnet_lite0", column, "from 128", **INSTANT) for column in ("W4A4", "W4A8", "W4A32")),
        *(Compared("squeezenet1_1", column, "from 256", **INSTANT) for column in ("W4A4", "W4A32", "W2A32")),
        *(Compared("resnet20", column, **INSTANT) for column in ("W4A4", "W3A3", "W2A4", "W2A2", "W4A32", "W2A32")),
    ]
    return _table(STARTS, [replace(row, wider=False) for row in rows])


def outputs() -> Lines:
    """Bits of what the first layer puts out, and of what is pooled for the last one."""
    rows = [
        Compared("efficientnet_lite0", "W4A4", LITE),
        Compared("squeezenet1_1", "W4A4", SQUEEZE),
        Compared("resnet20", "W4A4", "steps=100", "100 steps"),
        Compared("resnet20", "W2A2", "", "seed 0"),
    ]
    columns = {"as other activations": "config.first_last_outputs=false", "8": "config.first_last_outputs=true"}
    return _table(columns, rows)


def mirrored() -> Lines:
    """Calibration pictures alone, and with their mirror images."""
    rows = [Compared("resnet20", column, wider=True) for column in ("W3A3", "W2A4", "W2A2")]
    return _table({"as they are": "", "mirrored as well": "config.mirrored=yes"}, rows)


def parts() -> Lines:
    """What each part of the recipe `fast` is worth: a row with one left out, a column for each network measured."""
    columns = {
        "ResNet-20, W2A2": Compared("resnet20", "W2A2", "steps=100", wider=True),
        "EfficientNet-lite0, W4A4": Compared("efficientnet_lite0", "W4A4", LITE, wider=True),
    }
    changes = {
        "everything": "",
        "start: rounding to nearest": "compensate=no",
        "QDrop: none": "qdrop=0",
        "biases: not learned in blocks": "bias_lr=0",
        "tuning: none": "tuning=0",
        "tuning: codes stay": "tune_codes_lr=0",
        "tuning: outputs alone": "tune_features=0",
        "nothing held out": "held_out=0",
        "last state, not the best": "keep_best=no",
        "loss not normalized": "normalize_loss=no rounding_penalty=0.01",
    }
    measured = {name: [each.cell(change) for change in changes.values()] for name, each in columns.items()}
    lines = zip(["", *changes], *([name, *cells] for name, cells in measured.items() if any(cells)), strict=True)
    return [list(line) for line in lines if not line[0] or any(line[1:])]


PAIRS = (
    "block.a=layer1.0*,layer1.1* block.b=layer1.2*,layer2.0* block.c=layer2.1*,layer2.2* block.d=layer3.0*,layer3.1*"
)


def blocks() -> Lines:
    """What is reconstructed as one."""
    columns = {
        "layers": "config.granularity=layer",
        "blocks": "",
        "two blocks": PAIRS,
        "stages": "config.granularity=stage",
        "the network": "config.granularity=net",
    }
    rows = [
        Compared("resnet20", "W2A2", "steps=100", wider=True),
        Compared("efficientnet_lite0", "W4A4", LITE, wider=True),
    ]
    return _table(columns, rows)


def batches() -> Lines:
    """How many samples a step is of; `75 of 32` looks at as many as `300 of 8`."""
    known = "correction=0.5", "correction=0"  # what is the default at these settings, under which they were measured
    rows = {
        Compared("efficientnet_lite0", "W2A8"): ("", "", "batch_size=8", "steps=75 batch_size=32"),
        Compared("squeezenet1_1", "W2A8"): ("", "", "batch_size=8", "steps=75 batch_size=32"),
        Compared("resnet20", "W2A2"): (known[0], "batch_size=16", "batch_size=8", ""),
        Compared("resnet20", "W4A4"): (known[1], "batch_size=16", "batch_size=8", ""),
    }
    cells = [row.line([change or "none" for change in changes]) for row, changes in rows.items()]
    return [["", "300 steps of 32", "300 of 16", "300 of 8", "75 of 32"], *cells]


def losses() -> Lines:
    """Squared error, and weighted by Fisher information in three ways; the last two are gone from the code."""
    rows = [
        Compared("resnet20", "W2A4", "steps=100"),
        Compared("squeezenet1_1", "W2A8", "steps=40 batch_size=16 from 256"),
        Compared("efficientnet_lite0", "W4A4", "steps=25 batch_size=16 from 128"),
    ]
    columns = {
        "squared error": "",
        "diagonal, one draw (the paper)": "loss=fisher",
        "diagonal, 8 draws, damped": "loss=fisher fisher_draws=8 fisher_damping=1",
        "4 vectors of a sketch, damped": "loss=sketch fisher_draws=4 fisher_damping=0.25",
    }
    return _table(columns, rows)


def _table(columns: dict[str, str], rows: Sequence[Compared]) -> Lines:
    lines = [row.line(list(columns.values())) for row in rows]
    return [["", *columns], *(line for line in lines if any(line[1:]))]
