"""Which part of a batch is which input, or the label: decided by the signature of `forward`."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import brecq
from brecq.data import Dataset, collect
from brecq.errors import DataError

IDS = torch.arange(24).reshape(6, 4)
MASK = torch.ones(6, 4)
TYPES = torch.zeros(6, 4, dtype=torch.long)
LENGTHS = torch.arange(6)
FEATURES = torch.randn(6, 4, 3)


class Text(nn.Module):
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Tensor:
        x = input_ids * (1.0 if attention_mask is None else attention_mask)
        return x if token_type_ids is None else x + 100 * token_type_ids.expand_as(x)


class Keywords(nn.Module):
    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return input_ids * attention_mask


class Anything(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner(*args, **kwargs)


class Audio(nn.Module):
    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        return features.sum(-1) * (torch.arange(features.shape[1]) < lengths[:, None])


class MaybeLengths(nn.Module):
    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        return features if lengths is None else features * lengths[:, None, None]


class Image(nn.Module):
    """Like timm's transformers: the mask that it can take is no label."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return x if attn_mask is None else x.masked_fill(attn_mask, 0)


class Detector(nn.Module):
    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        return images


class Scaled(nn.Module):
    def forward(self, x: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        return x * scale


class Steps(nn.Module):
    """What it takes beside `x` is a number, but no tensor of several."""

    def forward(self, x: Tensor, steps: int = 2) -> Tensor:
        return torch.stack([x for _ in range(int(steps))]).sum(0)


class Behind(nn.Module):
    """The mask lies behind an option: no part of a tuple reaches it."""

    def forward(self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        return x * scale if mask is None else x * mask


class Scorer(nn.Module):
    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return source + target


@pytest.mark.parametrize("wrap", [dict, UserDict])
@pytest.mark.parametrize("model", [Text(), nn.DataParallel(Text()), torch.compile(Text())])
def test_dictionaries_go_by_name(model: nn.Module, wrap: type) -> None:
    batch = wrap(token_type_ids=TYPES, labels=LENGTHS, attention_mask=MASK, input_ids=IDS)
    for data in ([batch], batch, DataLoader([{k: v[i] for k, v in batch.items()} for i in range(6)], batch_size=4)):
        found = collect(data, None, model=model)
        assert found.keys == ("input_ids", "attention_mask", "token_type_ids")
        assert [torch.equal(*pair) for pair in zip(found.inputs, (IDS, MASK, TYPES), strict=True)] == [True] * 3
        assert found.labels.tolist() == LENGTHS.tolist()
        assert found.origin == (
            "input_ids, attention_mask, token_type_ids by name; 'labels' taken as the label, not given to the network"
        )


def test_gaps_keyword_only_inputs_and_wrappers() -> None:
    assert collect([{"token_type_ids": TYPES, "input_ids": IDS}], None, model=Text()).keys == (
        "input_ids", "token_type_ids"
    )  # fmt: skip
    batch = {"attention_mask": MASK, "input_ids": IDS}
    assert collect([batch], None, model=Keywords()).keys == ("input_ids", "attention_mask")
    assert set(collect([batch], None, model=Anything(Text())).keys) == {"input_ids", "attention_mask"}
    arguments = collect([batch], None, model=Keywords()).arguments()
    assert torch.equal(Keywords()(**arguments), IDS * MASK)


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, batch: dict[str, Tensor], scale: float = 1.0) -> Tensor:
        return self.linear(batch["left:0"] * scale + batch["right"])


def test_a_network_that_takes_a_dictionary_is_told_to_be_wrapped() -> None:
    """The error holds the code, which works."""
    network, batch = Dictionary(), {"left:0": torch.randn(6, 3), "right": torch.randn(6, 3), "label": LENGTHS}
    told = r"takes a dictionary with 'left:0', 'right', and .* quantize Wrapped\(network\) instead\nclass "
    for use in (brecq.quantize, brecq.evaluate):
        with pytest.raises(DataError, match=rf"^Dictionary\.forward\(batch, scale=…\) {told}"):
            use(network, [batch])
        with pytest.raises(DataError, match=rf"does not run on sample.*: IndexError: .* {told}"):
            use(network, batch["right"])
    with pytest.raises(DataError) as caught:
        collect([batch], None, model=network)
    made: dict[str, Any] = {"torch": torch}
    exec(str(caught.value).partition("instead\n")[2], made)
    wrapped = made["Wrapped"](network)
    found = collect([batch], None, model=wrapped)
    assert torch.equal(wrapped(**found.arguments()), network(batch))


def test_named_tuples_go_by_name_if_the_names_are_those_of_forward() -> None:
    batch = namedtuple("batch", ["attention_mask", "input_ids"])(MASK, IDS)
    found = collect([batch], None, model=Text())
    assert torch.equal(found.inputs[0], IDS)
    other = namedtuple("other", ["image", "category"])(IDS, LENGTHS)
    assert collect([other], None, model=nn.Identity()).labels.tolist() == LENGTHS.tolist()


def test_a_dictionary_of_inputs_and_the_label_beside_it() -> None:
    inputs = {"attention_mask": MASK, "input_ids": IDS}
    samples = [({name: value[i] for name, value in inputs.items()}, LENGTHS[i]) for i in range(6)]
    for data in ([(inputs, LENGTHS)], [[inputs, LENGTHS]], DataLoader(samples, batch_size=4)):
        found = collect(data, None, model=Text())
        assert found.keys == ("input_ids", "attention_mask")
        assert torch.equal(found.inputs[0], IDS)
        assert found.labels.tolist() == LENGTHS.tolist()
    with pytest.raises(DataError, match="several labels"):
        collect([({**inputs, "label": LENGTHS}, LENGTHS)], None, model=Text())
    with pytest.raises(DataError, match="is a dict"):
        collect([[inputs, inputs]], None, model=Text())


@pytest.mark.parametrize(
    ("model", "parts", "inputs", "labelled"),
    [
        (nn.Linear(3, 2), (FEATURES, LENGTHS), 1, True),
        (nn.Linear(3, 2), (FEATURES, FEATURES), 1, False),  # a target that is no class index
        (Audio(), (FEATURES, LENGTHS), 2, False),
        (Audio(), (FEATURES, LENGTHS.float()), 2, False),
        (Audio(), (FEATURES, LENGTHS, LENGTHS), 2, True),
        (Anything(Audio()), (FEATURES, LENGTHS), 2, False),
        (Anything(nn.Linear(3, 2)), (FEATURES, LENGTHS), 1, True),
        (Image(), (FEATURES, LENGTHS), 1, True),
        (Image(), (FEATURES, torch.zeros(6, 4, 3) > 0, LENGTHS), 2, True),
        (Detector(), (FEATURES, LENGTHS), 1, True),
        (Scaled(), (FEATURES, LENGTHS), 1, True),  # class indices, whatever else forward might do with them
        (Steps(), (FEATURES, FEATURES[..., :2]), 1, False),
        (Behind(), (FEATURES, LENGTHS), 1, True),
        (Scorer(), (FEATURES, FEATURES), 2, False),
        (Text(), (IDS, MASK, LENGTHS), 2, True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_tuples_go_by_position(model: nn.Module, parts: tuple[Tensor, ...], inputs: int, labelled: bool) -> None:
    for data in ([parts], [list(parts)], TensorDataset(*parts), DataLoader(TensorDataset(*parts), batch_size=4)):
        found = collect(data, None, model=model)
        assert len(found.inputs) == inputs
        assert (found.labels is not None) == labelled
        assert ("taken as the label" in found.origin) == labelled
        assert ("taken as the target" in found.origin) == (len(parts) > inputs and not labelled)
        assert (found.targets is not None) == (len(parts) > inputs and not labelled)
    for place, part in enumerate(parts[:inputs]):
        assert torch.equal(found.inputs[place], part)


def test_required_label_names_are_inputs() -> None:
    found = collect([{"target": FEATURES, "source": MASK[..., None]}], None, model=Scorer())
    assert found.keys == ("source", "target")


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            Text(),
            [{"input_ids": IDS, "idx": LENGTHS}],
            r"holds 'input_ids', 'idx', and Text\.forward\(.*\) takes no 'idx'",
        ),
        (Text(), [{"attention_mask": MASK}], "needs 'input_ids' too"),
        (Keywords(), [{"input_ids": IDS}], "needs 'attention_mask' too"),
        (Keywords(), [(IDS, MASK)], "needs 'input_ids', 'attention_mask' too"),
        (Audio(), [FEATURES], "has 1 part, but .* needs 'lengths' too"),
        (nn.Linear(3, 2), [(FEATURES, FEATURES, LENGTHS)], "3 parts, but .* takes 1 and one label"),
        (MaybeLengths(), [(FEATURES, LENGTHS)], "also runs without the last one.*'features': …, 'lengths': …"),
        (Scaled(), [(FEATURES, torch.rand(6, 1, 1))], "also runs without the last one.*'x': …, 'scale': …"),
        (Behind(), [(FEATURES, FEATURES)], "also runs without the last one.*'x': …, 'scale': …"),
        (Text(), [{"input_ids": IDS, "label": LENGTHS, "labels": LENGTHS}], "several labels"),
        (Audio(), Dataset((FEATURES,)), "1 input by position, and .* takes 2"),
        (Text(), Dataset((IDS,), keys=("ids",)), "holds 'ids'"),
        (Text(), [{"input_ids": ["a", "b"]}], "'input_ids'|is a list"),
        (Text(), [{"input_ids": IDS}, {"input_ids": IDS, "attention_mask": MASK}], "give the same in all"),
    ],
)
def test_what_does_not_fit_is_refused(model: nn.Module, data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        collect(data, None, model=model)


def test_what_a_number_with_a_default_is_for_is_said_by_name() -> None:
    found = collect([{"x": FEATURES, "scale": MASK[:, :1, None], "y": LENGTHS}], None, model=Scaled())
    assert (found.keys, found.labels.tolist()) == (("x", "scale"), LENGTHS.tolist())


def test_a_single_number_among_inputs_makes_an_element_one_sample_and_that_is_said() -> None:
    found = collect([{"x": FEATURES, "scale": torch.tensor(0.5)}], None, model=Scaled())
    assert [list(value.shape) for value in found.inputs] == [[1, *FEATURES.shape], [1]]
    assert "scale: a single number, so each element is taken for one sample" in found.origin
    found = collect([(FEATURES[0], 3), (FEATURES[1], 4)], None, model=Scaled())  # samples with labels
    assert (found.labels.tolist(), "single number" in found.origin) == ([3, 4], False)


def test_a_dataset_is_put_in_the_order_of_forward() -> None:
    data = Dataset((MASK, IDS), LENGTHS, keys=("attention_mask", "input_ids"))
    found = collect(data, None, model=Text())
    assert found.keys == ("input_ids", "attention_mask")
    assert torch.equal(found.inputs[0], IDS)
    assert found.subset(slice(0, 2)).arguments().keys() == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("mask", [MASK, torch.ones(6, 4, dtype=torch.long), torch.ones(6, dtype=torch.bool)])
def test_an_input_that_happens_to_change_nothing_is_no_label(mask: Tensor) -> None:
    """A mask of ones was left out in silence, and every other mask with it."""
    net = MaybeLengths() if mask.ndim == 1 else Text()
    given = (FEATURES, mask) if mask.ndim == 1 else (IDS, mask)
    with pytest.raises(DataError, match="it may be an input or a label; give dictionaries"):
        collect([given], None, model=net)
