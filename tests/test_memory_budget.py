"""The memory budget is kept by the process as a whole, and what cannot fit is refused before the work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import brecq
from brecq.errors import ConfigError
from brecq.reconstruct.need import FIXED

SCRIPT = """
import sys
from pathlib import Path
import torch
from torch import nn
import brecq

torch.set_num_threads(1)
SAMPLES = 512

class Thin(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(6))
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.head(x.mean((2, 3)))

def memory(key):
    return 1024 * int(Path("/proc/self/status").read_text().split(key)[1].split()[0])

def grown(budget):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    before = memory("VmRSS:")
    config = brecq.QuantConfig(recipe=brecq.Recipe.preset("instant"), memory_budget=budget)
    digest = brecq.quantize(model, x, config, run_dir=sys.argv[1], device="cpu").digest()
    return memory("VmHWM:") - before, digest

torch.manual_seed(0)
model, x = Thin().eval(), torch.randn(SAMPLES, 4, 64, 64)
small = grown(int(sys.argv[2]))
large = grown(None)
print(small[0], large[0], small[1] == large[1])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_the_whole_process_keeps_the_budget(tmp_path: Path) -> None:
    """Activations do not fit beside the rest. Without a budget, a second run of the same process, which
    has the fixed part already, takes more."""
    budget = FIXED + 130_000_000
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(budget)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment())
    small, large, same = found.stdout.split()
    assert same == "True"
    assert int(small) < budget
    assert int(large) > int(small) - FIXED + 100_000_000


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "BRECQ_KERNELS": "eager"}


def needed(model: nn.Module, x: torch.Tensor, folder: Path) -> int:
    """Bytes, as the refusal says."""
    config = brecq.QuantConfig(memory_budget=100_000_000, recipe=brecq.Recipe.preset("instant"))
    with pytest.raises(
        ConfigError, match=r"memory_budget is 100.0 MB, but the run needs [\d.]+ MB besides the model"
    ) as e:
        brecq.quantize(model, x, config, run_dir=folder)
    assert not (folder / "blocks").exists()
    return round(float(re.findall(r"[\d.]+(?= MB)", str(e.value))[1]) * 1e6)


def test_what_cannot_fit_is_refused_with_the_number(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 512)).eval()
    moments = 7 * 8 * 2048**2
    assert FIXED + moments < needed(model, torch.randn(32, 8, 512), tmp_path) < FIXED + 3 * moments


def test_layers_that_see_few_patches_need_less(tmp_path: Path) -> None:
    """256 samples of one patch each: the patches of the widest layer, not its second moments."""
    model = nn.Sequential(nn.Linear(64, 12_000), nn.ReLU(), nn.Linear(12_000, 64)).eval()
    patches = 256 * 12_000 * 4
    assert FIXED + 4 * patches < needed(model, torch.randn(32, 64), tmp_path) < FIXED + 20 * patches
