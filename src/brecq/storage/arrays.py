"""Tensors as safetensors files, the same bytes for the same tensors, with a checksum of the file inside if wanted.

The package `safetensors` writes the metadata in random order, and files that only their owner may read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from brecq.errors import BrecqError
from brecq.storage.files import Chunk, write

_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.complex64: "C64", torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
}  # fmt: skip
_OPEN = '{"__metadata__":{"sha256":"'
_BLANK = "0" * 64


def write_arrays(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    raises: type[BrecqError],
    *,
    sealed: bool = False,
) -> None:
    """Write a safetensors file.

    Its folder is created.

    Args:
        tensors: of any device and layout. sealed: put the SHA-256 of the file, with zeros in its place, in front.
    """
    # large elements first, as the package orders them: everything is aligned
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"sha256": _BLANK, **metadata} if sealed else dict(metadata)}
    chunks: list[Chunk] = []
    position = 0
    for name in order:
        value = tensors[name].detach().cpu().contiguous()
        if value.dtype not in _TYPES:
            raise raises(f"{path.name} cannot hold {name!r}: its dtype is {value.dtype}")
        data = value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else memoryview(b"")
        offsets = [position, position := position + value.nbytes]
        header[name] = {"dtype": _TYPES[value.dtype], "shape": list(value.shape), "data_offsets": offsets}
        chunks.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    text = len(text).to_bytes(8, "little") + text
    if sealed:
        text = text.replace(_BLANK.encode(), _digest([text, *chunks]).encode(), 1)
    write(path, [text, *chunks], raises, parents=True)


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a sealed file.

    Raises:
        ValueError: the file is not, bit for bit, what was written. OSError: it cannot be read.
    """
    content = path.read_bytes()
    start = 8 + len(_OPEN)
    if content[8:start] != _OPEN.encode():
        raise ValueError("it holds no checksum")
    found = content[start : start + 64]
    blank: list[Chunk] = [content[:start], _BLANK.encode(), memoryview(content)[start + 64 :]]
    if _digest(blank).encode() != found:
        raise ValueError("its checksum is wrong")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, {key: value for key, value in header["__metadata__"].items() if key != "sha256"}


def _digest(chunks: list[Chunk]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
