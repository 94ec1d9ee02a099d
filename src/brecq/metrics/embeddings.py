"""Embeddings: vectors of which only their directions to each other matter."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brecq.errors import DataError
from brecq.labels import counted, left_out
from brecq.metrics.base import Decode, Task, batched, one_tensor


class Embeddings(Task):
    """Vectors [N, D] against others (those of a teacher, of the float network) or against classes.

    Against vectors: mean cosine similarity, and Spearman's rank correlation of the similarities of all pairs of
    samples. Against class indices: recall@1, percent of samples whose nearest neighbor is of their class. Flips:
    samples whose nearest neighbor is another one. Vectors of all samples are kept. Samples of the class -100 have
    none, and are no neighbors; `notes` say how many they were.

    Args:
        output: which output holds the vectors. decode: from the network's output to [N, D], such as a mean over
            tokens.
    """

    name = "embeddings"
    without = "are -100, all of them"

    def __init__(self, output: str | None = None, decode: Decode | None = None) -> None:
        super().__init__(decode)
        self.output = output
        self._found: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._compared: list[tuple[Tensor, Tensor]] = []

    def _vectors(self, outputs: Any) -> Tensor:
        found = one_tensor(self.decoded(outputs), self.output, "embeddings [N, D]").cpu()
        if found.ndim != 2:
            raise DataError(
                f"the output has shape {list(found.shape)}; embeddings are [N, D]: give a function that makes them "
                "(decode=..., --decode)"
            )
        return F.normalize(found, dim=1)

    def update(self, outputs: Any, targets: Any, /) -> None:
        found, expected = self._vectors(outputs), batched(targets, "vectors or class indices").cpu()
        if len(expected) != len(found) or (expected.ndim == 2 and expected.shape != found.shape):
            raise DataError(f"the targets have shape {list(expected.shape)}, the embeddings {list(found.shape)}")
        if expected.is_floating_point() and not expected.isfinite().all():
            raise DataError("the targets hold NaN or infinite values; leave these samples out, or repair them")
        self._found.append(found)
        self._targets.append(F.normalize(expected.float(), dim=1) if expected.ndim == 2 else expected)

    def compute(self) -> dict[str, float]:
        if not self._found:
            return {}
        found, targets = torch.cat(self._found), torch.cat(self._targets)
        if targets.ndim == 1:
            found, targets = found[counted(targets)], targets[counted(targets)]
            if len(found) < 2:  # no neighbors
                return {}
            return {"recall@1 %": 100 * (targets[nearest(found)] == targets).double().mean().item()}
        values = {"cosine": (found * targets).sum(1).mean().item()}
        if len(found) > 2:
            values["rank correlation"] = spearman(similarities(found), similarities(targets))
        return values

    def notes(self) -> list[str]:
        classes = [each for each in self._targets if each.ndim == 1]
        ignored = sum(int((~counted(each)).sum()) for each in classes)
        return left_out(ignored, sum(map(len, classes)), "labels")

    def counted(self, targets: Any) -> int:
        expected = batched(targets, "vectors or class indices")
        return int(counted(expected).sum()) if expected.ndim == 1 else len(expected)

    def targets_of(self, outputs: Any) -> Tensor:
        return self._vectors(outputs)

    def compare(self, outputs: Any, reference: Any, targets: Any = None) -> None:
        self._compared.append((self._vectors(outputs), self._vectors(reference)))

    def flips(self) -> float | None:
        if sum(len(found) for found, _ in self._compared) < 3:
            return None
        found, expected = (torch.cat(each) for each in zip(*self._compared, strict=True))
        return 100 * (nearest(found) != nearest(expected)).double().mean().item()


def nearest(vectors: Tensor) -> Tensor:
    """Index of the nearest other one of unit vectors [N, D]; int64 [N]."""
    parts = []
    for start in range(0, len(vectors), 1024):
        cosine = vectors[start : start + 1024] @ vectors.T
        cosine.diagonal(start).fill_(-2)
        parts.append(cosine.argmax(1))
    return torch.cat(parts)


def similarities(vectors: Tensor) -> Tensor:
    """Cosines of all pairs of unit vectors [N, D]; [N·(N-1)/2]."""
    row, column = torch.triu_indices(len(vectors), len(vectors), 1)
    return (vectors @ vectors.T)[row, column]


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two lists of numbers [M], ties at their mean rank; 0 where one is constant."""
    ranks = torch.stack([_ranks(a), _ranks(b)])
    ranks = ranks - ranks.mean(1, keepdim=True)
    norm = ranks.norm(dim=1).prod()
    return (ranks.prod(0).sum() / norm).item() if norm else 0.0


def _ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place]
