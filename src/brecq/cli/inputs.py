"""What commands need before they work: the model, its preprocessing, the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from brecq.errors import ConfigError
from brecq.settings import MAX_SKIPPED

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from brecq.cli.options import Machine
    from brecq.data import Dataset, Form
    from brecq.data.pictures import Pictures
    from brecq.data.preprocessing import Preprocessing
    from brecq.sources import Source

KEEP_BYTES = 2 * 1024**3
"""Evaluation inputs up to this size stay in memory between the networks they are run through."""

_REQUIRED = ("mean", "std", "size")


def use_device(machine: Machine) -> None:
    """Check that the device is there, and set the number of CPU threads."""
    import torch

    from brecq.checks import check_device

    check_device(machine.device)
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)


def which_parts(names: Sequence[str], source: Source) -> dict[str, Any]:
    """The arguments of `brecq.quantize` that say which submodules to quantize: those named, or the source's."""
    if len(names) == 1 and not source.submodules:  # detectors take lists of pictures, as networks in parts may
        return {"submodule": names[0]}
    chosen = names or source.submodules
    return {"submodules": list(chosen)} if chosen else {"submodule": None}


def require_whole(source: Source, what: str) -> None:
    """Raise `ConfigError` for a network that is quantized in parts: of those that are quantized whole, `what`."""
    if source.submodules:
        raise ConfigError(
            f"{source.name} is quantized in parts ({', '.join(source.submodules)}), and it is those quantized whole "
            f"that {what}"
        )


def example_shape(source: Source, preprocessing: Preprocessing | None) -> Sequence[int] | None:
    """Shape of the only input without the batch, where no preprocessing tells it."""
    if preprocessing is not None or len(source.example_inputs) != 1:
        return None
    return tuple(source.example_inputs[0].shape[1:])


def override_preprocessing(
    base: Preprocessing | None, changes: Mapping[str, Any], examples: Sequence[Tensor] = ()
) -> Preprocessing | None:
    """`base` with the command line's changes; without a base, mean, std and size are all needed.

    `examples`: inputs of the network. Where it takes one of a single channel, and nothing else is said, pictures are
    read gray.
    """
    if not changes:
        return base
    if base is not None:
        return base.replace(**changes)
    missing = [f"--{name}" for name in _REQUIRED if name not in changes]
    if missing:
        raise ConfigError(f"the model names no preprocessing of its own; give {' and '.join(missing)} too")
    from brecq.data.preprocessing import Preprocessing

    gray = len(examples) == 1 and examples[0].ndim == 4 and examples[0].shape[1] == 1
    return Preprocessing(**{"resize": None, "color": "GRAY" if gray else "RGB", **changes})


def stored_preprocessing(metadata: Mapping[str, Any], changes: Mapping[str, Any]) -> Preprocessing | None:
    """What a result remembers, with the command line's changes."""
    from brecq.data.preprocessing import Preprocessing

    stored = metadata.get("preprocessing")
    return override_preprocessing(None if stored is None else Preprocessing.from_dict(stored), changes)


def in_one_size(preprocessing: Preprocessing | None) -> Preprocessing | None:
    """`Preprocessing.in_one_size`, where there is one."""
    return None if preprocessing is None else preprocessing.in_one_size()


def tell(console: Console, name: str, text: str) -> None:
    """One aligned line of facts."""
    console.print(Text.assemble((f"{name:<14}", "bold"), text), soft_wrap=True, highlight=False)


def tell_preprocessing(
    console: Console, preprocessing: Preprocessing | None, task: str | None = None, *, in_parts: bool = False
) -> None:
    """How inputs are prepared, and that a detector in parts, which resizes pictures itself, gets resized ones.

    Raises:
        ConfigError: pictures at their own sizes for a network that is not in parts: such ones take a tensor.
    """
    tell(console, "preprocessing", "none" if preprocessing is None else preprocessing.describe())
    if preprocessing is None:
        return
    if preprocessing.fit == "own" and not in_parts:
        raise ConfigError(
            "--fit own is for detectors that are quantized in parts and take a list of pictures of any sizes; this "
            "network takes inputs of one size: choose another fit"
        )
    if preprocessing.fit != "own" and in_parts and task == "detection":
        tell(
            console, "", "pictures are brought to this size before the detector resizes them itself: its AP is not "
            "that of pictures as they are (--fit own)"
        )  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """Samples to take: `size` at random, or with `None` all in the order of their names.

    Where there are fewer, that is told unless nobody asked for so many: `by_default`.
    """

    size: int | None
    seed: int
    by_default: bool = False


class EvaluationData:
    """Labeled or unlabeled samples, to be run through several networks: an iterable of parts, each a `Dataset`, or
    `Pictures` where the preprocessing leaves these at their own sizes.

    Sets that fit into `KEEP_BYTES` stay in memory, larger ones are decoded again on every pass.
    """

    def __init__(
        self,
        path: Path,
        preprocessing: Preprocessing | None,
        draw: Draw,
        labels: Path | None,
        form: Form | None = None,
        max_skipped: float = MAX_SKIPPED,
    ) -> None:
        from brecq.data import Form
        from brecq.data.load import iter_samples, load_samples
        from brecq.data.pictures import Pictures

        form = form or Form()
        self._read = lambda: iter_samples(path, preprocessing, labels=labels, form=form, max_skipped=max_skipped)
        self.parts: list[Dataset | Pictures] = []
        self.complete = True
        if draw.size is not None:
            few = load_samples(
                path, preprocessing, draw.size, draw.seed, labels=labels, form=form, at_most=draw.by_default,
                max_skipped=max_skipped,
            )  # fmt: skip
            self.parts = [few]
            return
        kept = 0
        for part in self._read():
            if kept > KEEP_BYTES:
                self.parts, self.complete = self.parts[:1], False
                return
            self.parts.append(part)
            tensors = part.pictures if isinstance(part, Pictures) else part.inputs
            kept += sum(tensor.nbytes for tensor in tensors)

    @property
    def labelled(self) -> bool:
        return self.parts[0].labelled

    def one_size(self) -> Dataset:
        """The first part, for networks that take inputs of one size: others have been refused."""
        return next(self.in_one_size())

    def in_one_size(self) -> Iterator[Dataset]:
        """All parts, for such networks."""
        from brecq.data import Dataset

        for part in self:
            assert isinstance(part, Dataset)
            yield part

    def telling(self) -> Dataset | Pictures:
        """A sample or two to try networks on before all others: where classes are right (labels, masks), those with
        the least and the largest."""
        import torch

        from brecq.data import Dataset

        parts = (part for part in self.parts if isinstance(part, Dataset))
        found = [(part, classes) for part in parts if (classes := _classes(part)) is not None]
        if not found:
            return self.parts[0].subset(slice(0, 2))
        part, (least, largest) = max(found, key=lambda each: int(each[1][1].max()))
        return part.subset(torch.stack([least.argmin(), largest.argmax()]))

    def __iter__(self) -> Iterator[Dataset | Pictures]:
        return iter(self.parts) if self.complete else self._read()


def _classes(part: Dataset) -> tuple[Tensor, Tensor] | None:
    """The least and the largest class of each sample, both int64 [N], of those that count; `None` without classes."""
    import torch

    from brecq.data.masks import OUTSIDE
    from brecq.labels import counted

    if part.labels is not None:
        classes = torch.where(counted(part.labels), part.labels, 0)
        return classes, classes
    targets = [] if part.targets is None else list(part.targets)
    if not targets or not all(isinstance(each, torch.Tensor) and not each.is_floating_point() for each in targets):
        return None
    found = [each[counted(each) & (each != OUTSIDE)].long() for each in targets]
    found = [each if len(each) else torch.zeros(1, dtype=torch.int64) for each in found]
    return torch.stack([each.min() for each in found]), torch.stack([each.max() for each in found])


def tell_data(console: Console, name: str, path: Path, data: Dataset | Pictures | EvaluationData) -> None:
    """How many samples came from where."""
    parts = data.parts if isinstance(data, EvaluationData) else [data]
    labels = f"with{'' if parts[0].labelled else 'out'} {'labels' if parts[0].targets is None else 'targets'}"
    more = "more than " if isinstance(data, EvaluationData) and not data.complete else ""
    tell(console, name, f"{more}{sum(map(len, parts))} {_shape(parts)} from {path}, {labels}")
    if parts[0].origin:
        tell(console, "", parts[0].origin)


def _shape(parts: Sequence[Dataset | Pictures]) -> str:
    """`samples of 3 × 224 × 224`, or `pictures of 7 sizes`."""
    from brecq.data.pictures import Pictures

    if isinstance(parts[0], Pictures):
        sizes = {size for part in parts if isinstance(part, Pictures) for size in part.sizes}
        return f"pictures of {len(sizes)} sizes" if len(sizes) > 1 else "pictures of {} × {}".format(*sizes.pop())
    shapes = [" × ".join(str(size) for size in value.shape[1:]) for value in parts[0].inputs]
    named = zip(parts[0].keys or [""] * len(shapes), shapes, strict=True)
    return "samples of " + " and ".join(f"{name} {size}".strip() for name, size in named)
