"""An ONNX file as a source: read, and compared with ONNX Runtime where its inputs have known sizes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from brecq.errors import BrecqError, SourceError, first_line
from brecq.forward import evaluating
from brecq.logits import named_outputs
from brecq.sources.onnx_files.module import OnnxModule
from brecq.sources.onnx_files.reader import Input, read
from brecq.sources.source import Source

TOLERANCE = 1e-3
"""Largest difference from ONNX Runtime, relative to the output's largest value."""


def load_onnx(path: Path, outputs: Sequence[str], spec: str, weights: Path | None) -> Source:
    """Read an ONNX file.

    Args:
        outputs: tensors to end at, in place of the file's outputs.

    Raises:
        SourceError: there is no such file, it cannot be read, or computes something else than in ONNX Runtime.
    """
    if weights is not None:
        raise SourceError(f"{spec} holds its weights; leave out {weights}")
    if not path.is_file():
        raise SourceError(f"{spec}: there is no file {path}; check the path")
    module, inputs = read(path, outputs)
    examples = tuple(_example(each) for each in inputs) if all(_known(each) for each in inputs) else ()
    if examples and not outputs:
        _compare(module.eval(), path, inputs, examples)
    return Source(path.stem, module.eval(), None, examples, spec)


def _known(entry: Input) -> bool:
    return bool(entry.sizes) and all(size is not None for size in entry.sizes[1:])


def _example(entry: Input) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = [2, *(size for size in entry.sizes[1:] if size is not None)]
    if entry.dtype == torch.int64:
        return torch.zeros(sizes, dtype=torch.int64)
    if entry.dtype in (torch.bool, torch.uint8):
        return torch.randint(256 if entry.dtype == torch.uint8 else 2, sizes, generator=generator).to(entry.dtype)
    return torch.rand(sizes, generator=generator)


@torch.no_grad()
def _compare(module: OnnxModule, path: Path, inputs: Sequence[Input], examples: Sequence[Tensor]) -> None:
    """Sample by sample where the file takes one at a time."""
    if importlib.util.find_spec("onnxruntime") is None:
        return
    import onnxruntime

    with _running(path, "ONNX Runtime does not take it"):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    step = inputs[0].sizes[0] or len(examples[0])
    if len(examples[0]) % step:
        return
    kinds = {each.name: each.type for each in session.get_inputs()}
    parts = []
    for start in range(0, len(examples[0]), step):
        feed = {each.name: value[start : start + step].numpy() for each, value in zip(inputs, examples, strict=True)}
        feed = {name: value.astype(_NUMPY.get(kinds[name], value.dtype)) for name, value in feed.items()}
        with _running(path, "ONNX Runtime does not run it on random inputs"):
            parts.append(session.run(module.outputs, feed))
    expected = [torch.cat([torch.from_numpy(part[i]).float() for part in parts]) for i in range(len(parts[0]))]
    many = f"it does not run on {len(examples[0])} samples; export it with a dynamic batch"
    with evaluating(module), _running(path, many):
        found = [value.float() for value in named_outputs(module(*(value.clone() for value in examples))).values()]
    for name, ours, theirs in zip(module.outputs, found, expected, strict=True):
        difference = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
        if not difference <= TOLERANCE * max(float(theirs.abs().max()), 1e-6):
            raise SourceError(
                f"{path}: its output {name!r} {list(ours.shape)} differs from ONNX Runtime's {list(theirs.shape)} by "
                f"up to {difference:.3g}; brecq reads an operator of it wrongly, or the file holds for one batch size "
                "only: export it with a dynamic batch"
            )


@contextmanager
def _running(path: Path, problem: str) -> Iterator[None]:
    try:
        yield
    except BrecqError:
        raise
    except Exception as error:  # PyTorch and ONNX Runtime raise their own types
        reason = first_line(error)
        raise SourceError(f"{path}: {problem} ({reason})") from error


_NUMPY = {"tensor(float16)": "float16", "tensor(double)": "float64", "tensor(int32)": "int32"}
