"""How far a run is: what it tells while it works. `brecq.cli.progress` shows it in a terminal or a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brecq.report import BlockReport, ScopeEntry


class Progress:
    """What a run tells while it works; every method does nothing, so this class is the silent progress.

    A run calls `stage` whenever it turns to something else, `scope` once it knows what it will quantize, then
    `start`, for each block `block`, `step` now and then, `block_done`, and `close` at the end. A second pass over
    the blocks calls `start` again.
    """

    def stage(self, text: str) -> None:
        """The run turned to `text`, such as "capturing the network"."""

    def note(self, text: str) -> None:
        """A fact worth knowing that is settled now, such as which part of the data went where."""

    def scope(self, entries: Sequence[ScopeEntry]) -> None:
        """It is settled what will be quantized, and how."""

    def start(self, blocks: Sequence[str], steps: int, later: int = 0, loss: str = "soft") -> None:
        """The blocks named `blocks` follow, `steps` gradient steps each; passes after this one cost about as much as
        `later` such steps. `loss` names what `step` tells of them: `soft`, a block's error, or `loss`, that of
        distilled inputs."""

    def block(self, index: int, name: str) -> None:
        """Work on the block at `index` (from 0) begins."""

    def step(self, step: int, soft_loss: float, hard_loss: float | None) -> None:
        """`step` steps of the block are done; losses with soft and, where known, hard rounding."""

    def block_done(self, report: BlockReport) -> None:
        """The block is finished, or was taken over from an earlier run (`report.resumed`)."""

    def close(self) -> None:
        """Nothing follows; calling it twice is fine."""
