"""`brecq doctor`: versions, devices, compilers and optional packages of this machine, and what each enables."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from brecq.cli.extras import Extra, extras
from brecq.cli.inputs import tell
from brecq.cli.render import make_console, make_table

if TYPE_CHECKING:
    from rich.table import Table

NAMED = 6
"""Packages that are told one by one."""


def doctor() -> None:
    """Show the versions, devices, compilers and optional packages that brecq finds, and what each enables.

    brecq doctor
    """
    from brecq.checkpoint.directory import versions
    from brecq.quant import fusion, kernels

    console = make_console()
    found = versions()
    tell(console, "brecq", f"{found['brecq']}, Python {platform.python_version()}, {platform.platform()}")
    tell(console, "torch", f"{found['torch']}, torchao {found['torchao']}")
    tell(console, "C++ compiler", fusion.cpp_compiler() or "none found; kernels for the processor are not compiled")
    for device, description in devices().items():
        tell(console, device, f"{description}; fake quantization kernels: {kernels.backend(device)}")
    tell(console, "skill file", f"{Path(__file__).parents[1] / 'SKILL.md'}, for coding assistants")
    optional = extras()
    if optional:
        console.print(extras_table(optional))
    else:
        tell(console, "packages", "unknown: brecq is not installed, it runs from its sources")


def devices() -> dict[str, str]:
    """What `--device` takes on this machine, and what it is."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"cpu": f"{platform.machine()}, {cores} cores, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found


def extras_table(extras: Sequence[Extra]) -> Table:
    """One line an extra: what it enables, and what is here or how to get it. Of many packages only how many are."""
    table = make_table("Optional packages", ["extra", "enables", "found"])
    for extra in extras:
        wrong = extra.wrong()
        here = [f"{name} {version}" for name, version in extra.found().items()]
        if wrong:
            problem = "; ".join(wrong) if len(wrong) <= NAMED else f"{len(wrong)} of {len(here)} missing or too old"
            state = f"{problem}: pip install 'brecq[{extra.name}]'"
        else:
            state = ", ".join(here) if len(here) <= NAMED else f"all {len(here)} packages"
        table.add_row(extra.name, extra.enables, Text(state))
    return table
