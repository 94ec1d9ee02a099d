"""Fisher information of block outputs (Li et al. 2021, equations 8 to 10).

The Fisher information of a block's output z, for one sample, is F = E_y[g gᵀ] with g = ∂ log p(y | x) / ∂z and y drawn
from the network's own predictive distribution. One backward pass over the float network yields all blocks' gradients.
`measure` keeps its diagonal, normalized for the reconstruction loss; `sketch` keeps vectors whose outer product is F
on average, on the scale that all blocks share.

A network that returns no class scores (boxes, depth, pictures, several outputs) predicts a normal distribution about
each of its outputs r, of the variance Σ r² a sample: its Fisher information is Σ Jᵀ J / Σ r² over the outputs, and
what is measured with it is the squared error of each output divided by the power of that output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brecq import logits, ranks
from brecq.config import Outputs, QuantConfig
from brecq.errors import ConfigError, DataError
from brecq.forward import BATCH, even_slices
from brecq.graph.outputs import structured
from brecq.labels import IGNORED, counted, no_class
from brecq.partition.blocks import Network, Values
from brecq.quant.fake_quant import Mode, set_mode
from brecq.ranks import Share, Unit
from brecq.reconstruct.cache import ActivationCache, Slot

_OTHERWISE = "outputs='values' weighs any outputs by their squares, loss='plain' needs none"


def check_labels(config: QuantConfig, labels: Tensor | None, why: str = "the calibration data has none") -> None:
    """Raise `ConfigError` where labels of the calibration data are asked for and there are none, because of `why`.

    Args:
        labels: int64 [N], one class index a sample.
    """
    recipe = config.recipe
    if config.method != "reconstruct" or recipe.loss != "fisher" or recipe.fisher_labels != "given":
        return
    if labels is None:
        raise ConfigError(
            f"fisher_labels is 'given', which takes one class index a sample, and {why}; give labeled calibration "
            "data, or use fisher_labels='sampled', which needs no labels"
        )


def measure(
    network: Network,
    inputs: tuple[Tensor, ...],
    labels: Tensor | None,
    cache: ActivationCache,
    share: Share,
    seed: int,
    class_axis: int | None = None,
    outputs: Outputs = "auto",
) -> None:
    """Store in `cache`, as slots `fisher`, the weights of every block output: g², float32, the output's shape,
    mean 1 over each sample.

    Args:
        inputs: each [N, ...] on the CPU. labels: int64 [N] to use instead of sampled ones. Both are those of `share`.
        seed: that labels are sampled with.
        class_axis: of the logits, see `brecq.logits.class_axis`. outputs: what the network returns.

    Raises:
        DataError: the network's output holds no logits and `outputs` or the labels ask for them; they have not one
            label each, or labels that are no classes.
    """
    values = _Values(network, inputs, cache.device, share, seed)

    def objective(output: Any, units: Sequence[Unit]) -> Tensor:
        if labels is None and not _scored(output, outputs, class_axis):
            return values.direction(output, units)
        flat = positions(output, class_axis, _OTHERWISE)
        if labels is None:
            return log_likelihood(flat, sampled(flat, units, seed))
        return log_likelihood(flat, labels[units[0].rows.start : units[-1].rows.stop])

    for name, start, value, gradient in _gradients(network, inputs, cache.device, share, objective):
        weight = torch.ones_like(value) if gradient is None else normalized(gradient.square())
        cache.put(Slot("fisher", name), start, weight, len(inputs[0]))


def sketch(
    network: Network,
    inputs: tuple[Tensor, ...],
    cache: ActivationCache,
    share: Share,
    seed: int,
    draw: int = 0,
    class_axis: int | None = None,
    outputs: Outputs = "auto",
) -> None:
    """Store in `cache`, as slots `gradient`, a random vector g of every block output with E[g gᵀ] = F,
    float32, the output's shape.

    The Fisher information of the logits is diag(p) − p pᵀ = L Lᵀ with L = diag(√p) − p √pᵀ, so g = Jᵀ L u with random
    signs u. Unlike a sampled label, every class counts in every sample, which leaves far less noise.

    Raises:
        DataError: the network's output holds no logits, and `outputs` asks for them.
    """
    values = _Values(network, inputs, cache.device, share, seed)

    def objective(output: Any, units: Sequence[Unit]) -> Tensor:
        if not _scored(output, outputs, class_axis):
            return values.direction(output, units)
        flat = positions(output, class_axis, _OTHERWISE)
        p = flat.detach().softmax(-1)
        signs = _signs(p, units, seed)
        direction = p.sqrt() * signs - p * (p.sqrt() * signs).sum(-1, keepdim=True)
        return (flat * direction).sum()

    for name, start, value, gradient in _gradients(network, inputs, cache.device, share, objective):
        found = torch.zeros_like(value) if gradient is None else gradient
        cache.put(Slot("gradient", name, draw), start, found, len(inputs[0]))


def _scored(output: Any, outputs: Outputs, class_axis: int | None) -> bool:
    """Whether the output is looked at as class scores."""
    found = logits.classifier(logits.named_outputs(output), class_axis)
    return outputs == "scores" or (outputs == "auto" and found is not None)


class _Values:
    """Outputs that are no class scores, each on the scale of its power over all samples, known at the first use."""

    def __init__(
        self, network: Network, inputs: tuple[Tensor, ...], device: torch.device, share: Share, seed: int
    ) -> None:
        self.network, self.inputs, self.device, self.share, self.seed = network, inputs, device, share, seed
        self.powers: dict[str, float] = {}

    def direction(self, output: Any, units: Sequence[Unit]) -> Tensor:
        """Σ u · r / √(Σ r²) over the outputs, with random signs u; 0-dim, differentiable.

        Raises:
            DataError: no output depends on the inputs through real numbers.
        """
        if not self.powers:
            self._measure()
        found = {
            name: value for name, value in logits.named_outputs(output).items()
            if value.is_floating_point() and value.requires_grad
        }  # fmt: skip
        if not found:
            raise DataError("no output of the network has a gradient: it returns indices; use loss='plain'")
        total = torch.zeros((), device=self.device)
        for name, value in found.items():
            total = total + (_signs(value, units, self.seed) * value).sum() / self.powers[name] ** 0.5
        return total

    @torch.no_grad()
    def _measure(self) -> None:
        """Σ r² of each output, mean over samples."""
        for rows in even_slices(len(self.share)):
            output = self.network.graph(*(value[rows].to(self.device) for value in self.inputs))
            for name, value in logits.named_outputs(structured(self.network.graph, output)).items():
                power = value.double().square().sum().item() / self.share.samples
                self.powers[name] = self.powers.get(name, 1e-30) + power
        self.powers = dict(zip(self.powers, ranks.current().total(*self.powers.values()), strict=True))


def _gradients(
    network: Network,
    inputs: tuple[Tensor, ...],
    device: torch.device,
    share: Share,
    objective: Callable[[Any, Sequence[Unit]], Tensor],
) -> Iterator[tuple[str, int, Tensor, Tensor | None]]:
    """For each batch and block output of the float network: its name, the first sample, the output, and the gradient
    of the objective (a sum over samples) with respect to it, `None` where it does not depend on it."""
    set_mode(network.graph, Mode.FLOAT)
    names = [name for block in network.blocks for name in block.targets]
    for units in share.batches(BATCH):
        start = units[0].rows.start
        part = slice(start, units[-1].rows.stop)
        values: Values = {name: tensor[part].to(device) for name, tensor in zip(network.inputs, inputs, strict=True)}
        values = {k: v.requires_grad_(v.is_floating_point()) for k, v in values.items()}
        with torch.enable_grad():
            for block in network.blocks:
                found = block(values)
                # what is looked up by whole numbers depends on nothing yet that has a gradient
                values.update(
                    {k: v.requires_grad_(v.is_floating_point() or v.requires_grad) for k, v in found.items()}
                )
            loss = objective(structured(network.graph, network.output(values)), units)
            gradients = torch.autograd.grad(loss, [values[name] for name in names], allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            yield name, start, values[name].detach(), gradient


def normalized(weight: Tensor) -> Tensor:
    """Weights [N, ...] divided by their mean over each sample.

    The gradients of samples that the network is sure of are orders of magnitude smaller than those of the others.
    Left alone, a handful of samples would make up the whole loss.
    """
    mean = weight.flatten(1).mean(1).clamp(min=torch.finfo(weight.dtype).tiny)
    return weight / mean.view(-1, *[1] * (weight.dim() - 1))


def log_likelihood(flat: Tensor, labels: Tensor) -> Tensor:
    """Σ log p(y) over positions, differentiable, 0-dim, for logits [positions, C] and labels y, int64."""
    target = labels.reshape(-1)
    if len(target) != len(flat):
        raise DataError(
            f"there are {len(target)} labels and {len(flat)} positions with scores; use fisher_labels='sampled'"
        )
    if not (counts := counted(target)).all():
        raise DataError(
            f"{int((~counts).sum())} of the labels are {IGNORED}, no class: leave these samples out, or use "
            "fisher_labels='sampled'"
        )
    if (bad := no_class(target, flat.shape[1])) is not None:
        raise DataError(
            f"there is a label {int(target[bad])}, and the network has classes 0 to {flat.shape[1] - 1}; check that "
            "the labels count from 0 and belong to it, or use fisher_labels='sampled'"
        )
    return -F.cross_entropy(flat, target.to(flat.device), reduction="sum")


def sampled(flat: Tensor, units: Sequence[Unit], seed: int) -> Tensor:
    """A label for each position of the samples in `units`, int64 on the CPU, drawn from the softmax."""
    probabilities = flat.detach().softmax(-1).cpu()
    parts = _by_unit(probabilities, units, seed)
    return torch.cat([torch.multinomial(part, 1, generator=random)[:, 0] for part, random in parts])


def _signs(values: Tensor, units: Sequence[Unit], seed: int) -> Tensor:
    """Random signs, of the shape of `values`, which hold the samples in `units`."""
    draws = [torch.randint(2, part.shape, generator=random) for part, random in _by_unit(values, units, seed)]
    return torch.cat(draws).to(values) * 2 - 1


def _by_unit(values: Tensor, units: Sequence[Unit], seed: int) -> Iterator[tuple[Tensor, torch.Generator]]:
    """The positions of each unit with a generator of its own: what is drawn for it is so whoever has the others."""
    each = len(values) // sum(unit.rows.stop - unit.rows.start for unit in units)
    parts = values.split([each * (unit.rows.stop - unit.rows.start) for unit in units])
    for unit, part in zip(units, parts, strict=True):
        yield part, torch.Generator().manual_seed((seed + unit.number) % (1 << 63))


def positions(output: Any, class_axis: int | None, remedy: str) -> Tensor:
    """The logits in a network's output as float32 [positions, C]; the `remedy` is for errors where there are none."""
    outputs = logits.named_outputs(output)
    name = logits.classifier(outputs, class_axis)
    try:
        axis = None if name is None else logits.class_axis(outputs[name], class_axis)
    except ValueError as error:
        raise DataError(f"{error}; give an axis of classes") from error
    if name is None or axis is None:
        found = ", ".join(f"{key} {list(value.shape)}".strip() for key, value in outputs.items())
        raise DataError(
            f"Fisher information needs a network that returns logits [N, classes], not {found}; say along which axis "
            f"its classes are (class_axis=..., --class-axis), or {remedy}"
        )
    return outputs[name].movedim(axis, -1).flatten(0, -2).float()
