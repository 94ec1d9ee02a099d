"""The result of a quantization: the network, its report, and the folder they are saved to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from brecq import ranks
from brecq.checkpoint import directory
from brecq.checkpoint.resume import RunState
from brecq.checkpoint.tensors import PackedWeight, collect_tensors, encode, stored_bytes
from brecq.config import QuantConfig
from brecq.converted.grids import QUANTIZE
from brecq.converted.inputs import InputTypes
from brecq.converted.ranges import FloatRange
from brecq.errors import CheckpointError
from brecq.report import Report
from brecq.storage import hub
from brecq.submodules.submodule import Submodule


@dataclass
class QuantResult:
    """A quantized network.

    Attributes:
        converted: the converted program: integer weights, quantize and dequantize operators.
        report: per block the errors before and after, and what was quantized where.
        config: as given. example_inputs: a batch of two.
        wrapped: the model around it, when only a submodule was quantized.
        metadata: anything JSON can hold; saved and loaded with the result.
        run_state: the finished blocks of the run, kept until the result is saved.
        ranges: of the tensors left in float, for runtimes that need them quantized; `None` if none were recorded.
        parts: the results of several submodules, by name (`brecq.composite`); of other results empty.
    """

    converted: nn.Module
    report: Report
    config: QuantConfig
    example_inputs: tuple[Tensor, ...]
    wrapped: Submodule | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    run_state: RunState | None = None
    ranges: list[FloatRange] | None = None
    parts: dict[str, QuantResult] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.converted, GraphModule):
            InputTypes.of(self.converted, self.example_inputs).guard(self.converted)

    @property
    def model(self) -> nn.Module:
        """The quantized network; around a quantized submodule, a copy of the whole model."""
        if self.wrapped is None:
            return self.converted
        if not hasattr(self, "_whole"):
            self._whole = self.wrapped.put_back(self.converted)
        return self._whole

    def weight_bytes(self) -> int:
        """Bytes of all weights, biases, scales and zero points, integers packed at their true bit-width."""
        return stored_bytes(collect_tensors(_graph(self.converted)))

    def float_bytes(self) -> int:
        """Bytes that the same network takes in float32."""
        tensors = collect_tensors(_graph(self.converted)).values()
        return 4 * sum(_numel(value) for value in tensors)

    def digest(self) -> str:
        """SHA-256 of the numbers that the network computes with: weights, scales, grids of activations, ranges.

        Exported files name it, so that `brecq.verify` knows whose they are; it is the same after saving and loading.
        """
        graph = _graph(self.converted)
        arrays, table = encode(collect_tensors(graph))
        grids = [list(map(str, node.args[1:])) for node in graph.graph.nodes if node.target is QUANTIZE]
        ranges = None if self.ranges is None else [asdict(range) for range in self.ranges]
        sha = hashlib.sha256(json.dumps([table, grids, ranges], sort_keys=True).encode())
        for name in sorted(arrays):
            sha.update(arrays[name].contiguous().flatten().view(torch.uint8).numpy().data)
        return sha.hexdigest()

    def save(self, path: Path | str) -> Path:
        """Write the program, its packed weights, report, times and manifest into the folder `path` (docs/format.md).

        A quantized submodule is saved alone: load it and put it back into its model. In an initialized
        `torch.distributed` group the first process writes, and the others do nothing.

        Raises:
            CheckpointError: the folder cannot be written, or holds a file of such a name that is not brecq's; or the
                program holds what a file cannot.
        """
        if not ranks.is_first():
            return Path(path)
        manifest = {
            "config": self.config.to_dict(),
            "seed": self.config.seed,
            "data_digest": self.report.data_digest,
            "submodule": None if self.wrapped is None else self.wrapped.name,
            "metadata": self.metadata,
            "ranges": None if self.ranges is None else [asdict(range) for range in self.ranges],
        }
        graph = _graph(self.converted)
        report, timing = apart(self.report.to_dict())
        folder = directory.write(path, graph, self.example_inputs, collect_tensors(graph), manifest, report, timing)
        if self.run_state is not None:
            self.run_state.clear()
        return folder


def load(path: Path | str) -> QuantResult:
    """Read a saved result; its network computes bit for bit what the saved one computed.

    Args:
        path: its folder, or `hf:USER/NAME` (`hf:USER/NAME@REVISION`): a repository that `brecq push` filled. The files
            are checked as those of a folder, and no code of the repository is run.

    Raises:
        CheckpointError: the folder or a file is missing, changed, or of another format version; or the repository
            cannot be fetched.
    """
    if isinstance(path, str) and path.startswith(hub.PREFIX):
        path = hub.fetch(path, directory.FILES)
    saved = directory.read(path)
    try:
        report = Report.from_dict(together(saved.report, saved.timing))
        config = QuantConfig.from_dict(saved.manifest["config"])
        ranges = saved.manifest["ranges"]
        return QuantResult(
            saved.graph,
            report,
            config,
            saved.example_inputs,
            metadata=saved.manifest["metadata"],
            ranges=None if ranges is None else [FloatRange(**entry) for entry in ranges],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # consistent files, but not those of a result
        raise CheckpointError(f"{path} does not hold a result of brecq: {error!r}; write it again") from error


_ONCE = ("seconds", "block_forwards")
_ONCE_A_BLOCK = ("seconds", "resumed")


def apart(report: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the same run reports every time, and what differs from one to the next."""
    timing = {key: report.pop(key) for key in _ONCE}
    timing["blocks"] = [{key: block.pop(key) for key in _ONCE_A_BLOCK} for block in report["blocks"]]
    return report, timing


def together(report: dict[str, Any], timing: dict[str, Any]) -> dict[str, Any]:
    blocks = [{**block, **times} for block, times in zip(report["blocks"], timing["blocks"], strict=True)]
    whole = {**report, **{key: timing[key] for key in _ONCE}, "blocks": blocks}
    return {key: value for key, value in whole.items() if key != "format"}


def _graph(module: nn.Module) -> GraphModule:
    assert isinstance(module, GraphModule)
    return module


def _numel(value: Any) -> int:
    if isinstance(value, PackedWeight):
        return int(value.codes().numel())
    return int((value if isinstance(value, Tensor) else value.codes).numel())
