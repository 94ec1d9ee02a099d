"""Language models: the next token."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brecq.errors import DataError
from brecq.labels import IGNORED, counted, left_out, no_class
from brecq.metrics.base import Decode, Task, batched, one_tensor


class LanguageModel(Task):
    """Perplexity of token ids [N, T] under logits [N, T, V]. Flips: positions with another most likely next token.

    Args:
        shift: position t predicts token t + 1, as in every causal model; otherwise token t (masked models).
        output: which output holds the logits. Targets of -100 do not count; `notes` say how many they were.
    """

    name = "language"
    without = "are -100, all of them"

    def __init__(self, output: str | None = None, shift: bool = True, decode: Decode | None = None) -> None:
        super().__init__(decode)
        self.output, self.shift = output, shift
        self._nats, self._tokens, self._ignored = 0.0, 0, 0

    def _logits(self, outputs: Any) -> Tensor:
        """[N, T, V], of the positions that predict something."""
        found = one_tensor(self.decoded(outputs), self.output, "logits [N, T, V]")
        if found.ndim != 3:
            raise DataError(f"the output has shape {list(found.shape)}; a language model returns logits [N, T, V]")
        return found[:, :-1] if self.shift else found

    def _tokens_of(self, targets: Any, logits: Tensor) -> Tensor:
        tokens = batched(targets, "token ids [N, T]")
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise DataError(f"the targets are {tokens.dtype} {list(tokens.shape)}; give token ids [N, T]")
        tokens = tokens[:, 1:] if self.shift else tokens
        if tokens.shape != logits.shape[:2]:
            raise DataError(f"there are tokens {list(tokens.shape)} for logits {list(logits.shape)}")
        if (bad := no_class(tokens, logits.shape[-1])) is not None:
            raise DataError(
                f"there is a token {int(tokens.flatten()[bad])}, and the network knows 0 to {logits.shape[-1] - 1}; "
                f"targets of {IGNORED} do not count"
            )
        return tokens.long().to(logits.device)

    def update(self, outputs: Any, targets: Any, /) -> None:
        found = self._logits(outputs)
        tokens = self._tokens_of(targets, found)
        loss = F.cross_entropy(found.flatten(0, 1), tokens.flatten(), ignore_index=IGNORED, reduction="sum")
        self._nats += loss.double().item()
        self._tokens += int(counted(tokens).sum())
        self._ignored += int((~counted(tokens)).sum())

    def compute(self) -> dict[str, float]:
        if not self._tokens:
            return {}
        nats = self._nats / self._tokens
        return {"perplexity": math.exp(min(nats, 700.0)), "nats a token": nats}

    def notes(self) -> list[str]:
        return left_out(self._ignored, self._tokens + self._ignored, "tokens")

    def counted(self, targets: Any) -> int:
        tokens = batched(targets, "token ids [N, T]")
        return int(counted(tokens[:, 1:] if self.shift else tokens).sum())

    def targets_of(self, outputs: Any) -> Tensor:
        chosen = self._logits(outputs).argmax(-1)
        return F.pad(chosen, (1, 0)) if self.shift else chosen

    def compare(self, outputs: Any, reference: Any, targets: Any = None) -> None:
        found, expected = self._logits(outputs), self._logits(reference)
        counts = torch.ones(expected.shape[:2], dtype=torch.bool, device=expected.device)
        if targets is not None:
            counts = counted(self._tokens_of(targets, expected))
        changed = (found.argmax(-1) != expected.argmax(-1)) & counts
        self._count(int(changed.sum()), int(counts.sum()))
