"""Text for language models: token ids in sequences of one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from brecq.data.dataset import Dataset
from brecq.errors import DataError

Tokenizer = Callable[[str], Any]
"""From text to token ids: a tokenizer of transformers, or a function that returns a list of whole numbers."""


def load_text(path: Path, tokenizer: Tokenizer, length: int, order: Callable[[int], Sequence[int]]) -> Dataset:
    """The text in `path` (a file, or all .txt files of a folder, by name) cut into sequences of `length` tokens.

    The inputs are token ids, int64 [N, length]; where the tokenizer names its output (`input_ids`), the input has
    that name, and an `attention_mask` of ones beside it if it makes one. The targets are the same ids: language models
    predict the next one. Tokens that fill no whole sequence are left out.

    Args:
        order: maps the number of sequences to the indices of those to take.

    Raises:
        DataError: the text is not there, or shorter than one sequence; the tokenizer does not make token ids.
    """
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"there is no text in {path}; give a .txt file, or a folder with some")
    try:
        text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as text: {error}") from error
    found = _tokens(tokenizer, text)
    names = ("input_ids", "attention_mask") if "attention_mask" in found else ("input_ids",)
    ids = found["input_ids"]
    count = len(ids) // length
    if not count:
        raise DataError(f"{path} holds {len(ids)} tokens, fewer than one sequence of {length}; ask for shorter ones")
    rows = ids[: count * length].view(count, length)[torch.tensor(list(order(count)), dtype=torch.int64)]
    inputs = (rows, torch.ones_like(rows))[: len(names)]
    keys = names if found["named"] else ()
    return Dataset(inputs, keys=keys, targets=rows, origin=f"{path.name} in sequences of {length} tokens")


def _tokens(tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    try:
        made = tokenizer(text)
        named = not isinstance(made, (list, tuple, torch.Tensor)) and "input_ids" in made
        ids = torch.as_tensor(made["input_ids"] if named else made)
    except Exception as error:  # whatever a tokenizer raises
        name = getattr(tokenizer, "__name__", type(tokenizer).__name__)
        raise DataError(f"the tokenizer {name} fails: {type(error).__name__}: {error}") from error
    if ids.is_floating_point() or ids.ndim != 1:
        raise DataError(f"the tokenizer made {ids.dtype} {list(ids.shape)} of a text; it has to make a list of ids")
    extra = {"attention_mask": True} if named and "attention_mask" in made else {}
    return {"input_ids": ids.long(), "named": named, **extra}
