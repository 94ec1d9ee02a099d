"""Targets: what runtimes accept, as tables. A network is placed, learned and completed for one from the start.

A table is a TOML file in `tables/`; `Target` says what its fields mean. A new runtime is a new file.
"""

from brecq.targets.table import WIDE, FixedGrid, Kernel, Rule, Target, Wide
from brecq.targets.tables import load, names, taking

__all__ = ["WIDE", "FixedGrid", "Kernel", "Rule", "Target", "Wide", "load", "names", "taking"]
