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

from brecq.checkpoint import directory
from brecq.checkpoint.resume import RunState
from brecq.checkpoint.tensors import PackedWeight, collect_tensors, encode, stored_bytes
from brecq.config import QuantConfig
from brecq.converted.grids import QUANTIZE
from brecq.converted.ranges import FloatRange
from brecq.graph.convert import example_inputs, to_module, to_program
from brecq.graph.submodule import Submodule
from brecq.report import Report


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
    """

    converted: nn.Module
    report: Report
    config: QuantConfig
    example_inputs: tuple[Tensor, ...]
    wrapped: Submodule | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    run_state: RunState | None = None
    ranges: list[FloatRange] | None = None

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
        """Write `model.pt2`, `weights.safetensors`, `manifest.json` and `report.json` into the folder `path`.

        A quantized submodule is saved alone: load it and put it back into its model.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        program = to_program(self.converted, self.example_inputs)
        manifest = {
            "config": self.config.to_dict(),
            "seed": self.config.seed,
            "data_digest": self.report.data_digest,
            "submodule": None if self.wrapped is None else self.wrapped.name,
            "metadata": self.metadata,
            "ranges": None if self.ranges is None else [asdict(range) for range in self.ranges],
        }
        tensors = collect_tensors(_graph(self.converted))
        folder = directory.write(path, program, tensors, manifest, self.report.to_dict())
        if self.run_state is not None:
            self.run_state.clear()
        return folder


def load(path: Path | str) -> QuantResult:
    """Read a saved result; its network computes bit for bit what the saved one computed.

    Raises:
        CheckpointError: the folder or a file is missing, changed, or of another format version.
    """
    saved = directory.read(path)
    ranges = saved.manifest.get("ranges")  # results of brecq 0.1.0 have none
    return QuantResult(
        to_module(saved.program),
        Report.from_dict(saved.report),
        QuantConfig.from_dict(saved.manifest["config"]),
        example_inputs(saved.program),
        metadata=saved.manifest["metadata"],
        ranges=None if ranges is None else [FloatRange(**entry) for entry in ranges],
    )


def _graph(module: nn.Module) -> GraphModule:
    assert isinstance(module, GraphModule)
    return module


def _numel(value: Any) -> int:
    if isinstance(value, PackedWeight):
        return int(value.codes().numel())
    return int((value if isinstance(value, Tensor) else value.codes).numel())
