from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from brecq.data import Dataset, iter_data
from brecq.errors import ConfigError, DataError
from brecq.evaluation import evaluate, sqnr
from brecq.metrics import Segmentation


class Fixed(nn.Module):
    """Returns rows of a table, whatever the mode; inputs are row numbers."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, rows: Tensor) -> Tensor:
        assert not self.training
        return self.table[rows]  # type: ignore[index]


def rows(n: int, labels: Tensor | None = None) -> Dataset:
    return Dataset((torch.arange(n),), labels)


def test_top1_and_top5() -> None:
    table = torch.arange(10.0).repeat(20, 1)  # class 9 first, then 8, 7, 6, 5
    labels = torch.tensor([9] * 5 + [8] * 3 + [5] * 2 + [4] * 10)
    result = evaluate(Fixed(table), rows(20, labels), batch_size=7)
    assert (result.samples, result.top1, result.top5) == (20, 25.0, 50.0)
    assert (result.agreement, result.sqnr) == (None, None)
    assert result.seconds > 0


def test_top5_needs_more_than_five_classes() -> None:
    result = evaluate(Fixed(torch.eye(5)), rows(5, torch.arange(5)))
    assert (result.top1, result.top5) == (100.0, None)


def test_agreement_and_sqnr_against_a_reference() -> None:
    reference = torch.eye(4).repeat(2, 1)
    output = reference.clone()
    output[0] = torch.tensor([0.0, 2.0, 0.0, 0.0])
    result = evaluate(Fixed(output), rows(8), reference=Fixed(reference), batch_size=3)
    assert result.agreement == 87.5
    assert result.sqnr == pytest.approx(10 * math.log10(8 / 5))
    assert result.top1 is None


def test_the_reference_is_judged_by_the_same_labels() -> None:
    table = torch.arange(10.0).repeat(20, 1)  # class 9 first, then 8, 7, 6, 5
    labels = torch.tensor([9] * 5 + [8] * 3 + [0] * 12)
    found = evaluate(Fixed(table), rows(20, labels), reference=Fixed(-table), batch_size=7)
    assert (found.top1, found.top5) == (25.0, 40.0)
    assert found.reference_metrics == {"top-1 %": 60.0, "top-5 %": 60.0}
    few = evaluate(Fixed(torch.eye(5)), rows(5, torch.arange(5)), reference=Fixed(-torch.eye(5)))
    assert few.reference_metrics == {"top-1 %": 0.0}
    assert evaluate(Fixed(torch.eye(5)), rows(5, torch.arange(5))).reference_metrics == {}


def test_identical_outputs() -> None:
    model = Fixed(torch.randn(6, 3))
    result = evaluate(model, rows(6), reference=model)
    assert (result.agreement, result.sqnr) == (100.0, math.inf)


@pytest.mark.parametrize(("shape", "axis"), [((4, 5, 3, 3), 1), ((4, 7, 5), -1)])
def test_dense_and_sequence_outputs(shape: tuple[int, ...], axis: int) -> None:
    class Named(Fixed):
        def forward(self, rows: Tensor) -> dict[str, Tensor]:
            return {"out": super().forward(rows)}

    first, second = torch.randn(shape), torch.randn(shape)
    result = evaluate(Named(first), rows(4), reference=Named(second), batch_size=2)
    expected = (first.argmax(axis) == second.argmax(axis)).float().mean() * 100
    assert result.agreement == pytest.approx(float(expected))


def test_regression_has_no_agreement() -> None:
    result = evaluate(Fixed(torch.ones(4, 1)), rows(4), reference=Fixed(torch.full((4, 1), 2.0)))
    assert result.agreement is None
    assert result.sqnr == pytest.approx(10 * math.log10(4))


@pytest.mark.parametrize(
    "wrap", [lambda t: {"aux": -t, "out": t}, lambda t: (t, None), lambda t: {"logits": t}, lambda t: {"scores": t}]
)
def test_wrapped_outputs(wrap: object) -> None:
    class Wrapped(Fixed):
        def forward(self, rows: Tensor) -> Tensor:
            return wrap(super().forward(rows))  # type: ignore[operator, no-any-return]

    assert evaluate(Wrapped(torch.eye(3)), rows(3, torch.arange(3))).top1 == 100.0


def test_training_mode_is_restored() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Flatten()).train()
    model[1].eval()
    data = Dataset((torch.rand(8, 10),))
    assert evaluate(model, data, reference=nn.Flatten()).sqnr == math.inf
    assert [module.training for module in model] == [True, False]


def test_exported_program() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    program = torch.export.export(model, (torch.randn(2, 3, 4),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    data = Dataset((torch.randn(9, 3, 4),))
    result = evaluate(program.module(), data, reference=model, batch_size=4)
    assert result.agreement == 100.0


def test_parts_give_the_same_as_the_whole(tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "d.npz", x=np.random.rand(11, 6).astype("float32"), y=np.arange(11) % 7)
    model, reference = nn.Linear(6, 7), nn.Linear(6, 7)
    parts = list(iter_data(tmp_path / "d.npz", None, chunk=4))
    whole = Dataset((torch.cat([p.inputs[0] for p in parts]),), torch.cat([p.labels for p in parts]))  # type: ignore[misc]
    first = evaluate(model, iter(parts), reference=reference)
    second = evaluate(model, whole, reference=reference)
    assert (first.samples, first.top1, first.top5, first.agreement) == (
        second.samples, second.top1, second.top5, second.agreement,
    )  # fmt: skip
    assert first.sqnr == pytest.approx(second.sqnr)


def test_sqnr() -> None:
    assert sqnr(100.0, 1.0) == pytest.approx(20.0)
    assert sqnr(1.0, 0.0) == math.inf
    assert sqnr(0.0, 1.0) == -math.inf


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_label_out_of_range_is_named_wherever_it_stands(wrong: int) -> None:
    labels = torch.arange(12) % 3
    labels[10] = wrong
    model = Fixed(torch.eye(3).repeat(4, 1))
    with pytest.raises(DataError, match=f"sample 10 has label {wrong}; labels must be 0 to 2, the network's classes"):
        evaluate(model, rows(12, labels), batch_size=4)
    with pytest.raises(DataError, match=f"there is a label {wrong}, and the network has classes 0 to 2"):
        evaluate(model, rows(12, labels), batch_size=4, metric="classification")


def test_bad_inputs() -> None:
    model = Fixed(torch.eye(3))
    with pytest.raises(DataError, match="sample 2 has label 3; labels must be 0 to 2"):
        evaluate(model, rows(3, torch.arange(3) + 1))
    with pytest.raises(DataError, match="labels go with"):
        evaluate(Fixed(torch.zeros(3, 4, 2, 2)), rows(3, torch.arange(3)))
    with pytest.raises(DataError, match="samples 2 to 3 holds NaN"):
        evaluate(Fixed(torch.tensor([0.0, 0, 0, float("nan")])[:, None]), rows(4), batch_size=2)
    with pytest.raises(DataError, match=r"shape \[3, 3\], the reference's \[3, 4\]"):
        evaluate(model, rows(3), reference=Fixed(torch.zeros(3, 4)))
    with pytest.raises(DataError, match="no samples"):
        evaluate(model, iter([]))
    with pytest.raises(DataError, match=r"returns \[\]: labels go with"):
        evaluate(Total(), rows(3, torch.arange(3)))
    with pytest.raises(DataError, match="output is NoneType; there is no tensor"):
        evaluate(Nothing(), rows(3))
    with pytest.raises(DataError, match="no output '7'; the model returns"):
        evaluate(model, rows(3), output=7)
    with pytest.raises(DataError, match=r"class_axis is 3, and the scores have shape \[3, 3\]"):
        evaluate(model, rows(3), class_axis=3)


class Nothing(nn.Module):
    def forward(self, rows: Tensor) -> None:
        return None


class Detector(nn.Module):
    """Boxes, scores of each and features, none of them named."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[:, :4] + self.noise, x[:, 4:] * (1 + self.noise), x.flatten(1)


def test_several_outputs_have_a_ratio_each_and_no_agreement() -> None:
    data = Dataset((torch.randn(6, 9, 5),), torch.arange(6) % 5)
    found = evaluate(Detector(0.1), Dataset(data.inputs), reference=Detector(0.0))
    assert list(found.outputs) == ["0", "1", "2"]
    assert found.outputs["1"] == pytest.approx(20.0, abs=1e-4)
    assert found.outputs["2"] == math.inf
    assert found.sqnr == min(found.outputs.values())
    assert found.agreement is None
    assert found.scored == ""
    with pytest.raises(
        DataError, match=r"returns 0 \[6, 4, 5\], .*say which output they are \(output=\.\.\. of brecq\.evaluate, "
    ):
        evaluate(Detector(0.1), data)
    chosen = evaluate(Detector(0.1), Dataset(data.inputs), reference=Detector(0.0), output=1)
    assert chosen.agreement == 100.0
    assert chosen.scored == "output '1', largest of 5 along axis 2, 5 positions a sample"


def test_pictures_are_no_classes_until_somebody_says_so() -> None:
    first, second = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    found = evaluate(Fixed(first), rows(4), reference=Fixed(second))
    assert found.agreement is None
    assert found.sqnr is not None
    told = evaluate(Fixed(first), rows(4), reference=Fixed(second), class_axis=1)
    assert told.agreement == pytest.approx(float((first.argmax(1) == second.argmax(1)).float().mean() * 100))


def test_another_axis_of_classes() -> None:
    first, second = torch.randn(4, 7, 5), torch.randn(4, 7, 5)
    result = evaluate(Fixed(first), rows(4), reference=Fixed(second), class_axis=1)
    assert result.agreement == pytest.approx(float((first.argmax(1) == second.argmax(1)).float().mean() * 100))
    assert result.scored == "largest of 7 along axis 1, 5 positions a sample"


def test_batches_of_any_kind() -> None:
    model, x, y = nn.Linear(6, 7), torch.randn(10, 6), torch.arange(10) % 7
    whole = evaluate(model, Dataset((x,), y))
    for data in ([(x[:4], y[:4]), (x[4:], y[4:])], [{"input": x, "labels": y}]):
        assert evaluate(model, data).top1 == whole.top1


class Total(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows.sum()


def test_a_task_without_targets_is_judged_by_the_reference() -> None:
    reference = torch.eye(4).repeat(2, 1)
    output = reference.clone()
    output[0] = torch.tensor([0.0, 2.0, 0.0, 0.0])
    result = evaluate(Fixed(output), rows(8), metric="classification", reference=Fixed(reference), batch_size=3)
    assert (result.task, result.against_reference, result.reference_metrics) == ("classification", True, {})
    assert result.metrics == {"top-1 %": 87.5}
    assert (result.flips, result.agreement) == (12.5, 87.5)
    assert result.sqnr == pytest.approx(10 * math.log10(8 / 5))


def test_targets_of_any_kind_come_from_the_data() -> None:
    scores = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    masks = scores.argmax(1)
    masks[0] = 255
    data = [(torch.arange(2), masks[:2]), (torch.arange(2, 4), masks[2:])]
    result = evaluate(Fixed(scores), data, metric=Segmentation(), reference=Fixed(-scores))
    assert (result.task, result.against_reference) == ("segmentation", False)
    assert result.metrics == {"mIoU %": 100.0, "pixel accuracy %": 100.0}
    assert result.reference_metrics["pixel accuracy %"] == 0.0
    assert result.flips == 100.0


def test_networks_in_half_precision_run_as_float32_copies() -> None:
    torch.manual_seed(0)
    half, x = nn.Linear(4, 3).bfloat16(), torch.randn(8, 4)
    found = evaluate(half, x.bfloat16(), reference=half)
    assert found.agreement == 100
    found = evaluate(copy.deepcopy(half).float(), x, reference=half)
    assert (found.agreement, found.sqnr) == (100, float("inf"))
    assert half.weight.dtype == torch.bfloat16


def test_empty_outputs_have_no_ratio() -> None:
    class Finds(nn.Module):
        def __init__(self, start: int) -> None:
            super().__init__()
            self.start = start

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"boxes": x[:, :0], "features": x[:, self.start :]}

    found = evaluate(Finds(0), torch.randn(4, 3), reference=Finds(0))
    assert (found.sqnr, found.outputs) == (float("inf"), {})
    assert evaluate(Finds(3), torch.randn(4, 3), reference=Finds(3)).sqnr is None


def test_a_metric_is_left_as_it_was() -> None:
    metric = Segmentation()
    scores = torch.randn(2, 3, 4, 4)
    data = Dataset((torch.arange(2),), targets=scores.argmax(1))
    first = evaluate(Fixed(scores), data, metric=metric)
    assert metric.compute() == {}
    assert first.metrics == evaluate(Fixed(scores), data, metric=metric).metrics
    assert (first.flips, first.agreement, first.sqnr) == (None, None, None)


def test_a_metric_needs_something_to_compare_with() -> None:
    with pytest.raises(DataError, match="classification needs targets, or the float network"):
        evaluate(Fixed(torch.eye(3)), rows(3), metric="classification")
    with pytest.raises(ConfigError, match=r"metric is a object; give a function of outputs and targets, or an object"):
        evaluate(Fixed(torch.eye(3)), rows(3), metric=object())  # type: ignore[arg-type]


def test_functions_and_classes_are_metrics() -> None:
    """As on the command line; of a network that returns names, each batch counts with its samples."""

    def error(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        return (outputs["a"] - targets["a"]).mean()

    class Named(Fixed):
        def forward(self, index: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"a": super().forward(index)}

    values = torch.tensor([[1.0], [1.0], [4.0]])
    found = evaluate(Named(values), rows(3), metric=error, reference=Named(values * 0), batch_size=2)
    assert (found.task, found.metrics) == ("error", {"error": 2.0})
    targets = [(torch.arange(3), torch.zeros(3, 1))]
    assert evaluate(Fixed(values), targets, metric=lambda found, right: (found - right)[:, 0]).metrics == {
        "<lambda>": 2.0
    }
    assert evaluate(Fixed(values), targets, metric=Counting).metrics == {"samples": 3.0}
    with pytest.raises(
        ConfigError, match=r"metric is a function of \(outputs\); give a function of outputs and targets"
    ):
        evaluate(Fixed(values), targets, metric=lambda outputs: outputs.mean())


def test_one_is_told_that_a_metric_of_ones_own_got_nan() -> None:
    def mae(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean()

    values = torch.ones(3, 2)
    gaps = torch.tensor([[1.0, math.nan], [1.0, 1.0], [math.nan, 1.0]])
    told = "2 of 6 target values are NaN, and {} got them as they are (--task regression leaves them out)"
    found = evaluate(Fixed(values), [(torch.arange(3), gaps)], metric=mae, batch_size=2)
    assert math.isnan(found.metrics["mae"])
    assert found.notes == [told.format("mae")]
    ragged = [(torch.arange(2), [torch.tensor([math.nan]), torch.ones(3)])]  # no tensor [N, ...]
    assert evaluate(Fixed(values), ragged, metric=Counting).notes[0].startswith("1 of 4 target values are NaN")
    assert evaluate(Fixed(values), [(torch.arange(3), values)], metric=mae).notes == []
    assert evaluate(Fixed(values), rows(3), metric=mae, reference=Fixed(values)).notes == []


def test_metrics_of_torchmetrics() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    data = Dataset((torch.arange(4),), torch.tensor([0, 1, 2, 0]))
    metric = torchmetrics.classification.MulticlassAccuracy(3, average="micro")
    found = evaluate(Fixed(torch.eye(4)[:, :3]), data, metric=metric)
    assert found.metrics == {"MulticlassAccuracy": 1.0}


class Boxes(nn.Module):
    """A detector: a box over the brighter half of each picture of a list."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, pictures: list[Tensor]) -> list[dict[str, Tensor]]:
        return [
            {"boxes": torch.tensor([[0.0, 0, x.shape[2], x.shape[1]]]), "scores": x.mean()[None],
             "labels": torch.tensor([self.label])}
            for x in pictures
        ]  # fmt: skip


def test_detectors_take_lists_of_pictures_of_any_sizes() -> None:
    pytest.importorskip("faster_coco_eval")
    pictures = [torch.full((3, 40, 20), 0.9), torch.full((3, 10, 30), 0.8), torch.full((3, 16, 16), 0.7)]
    targets = [
        {"boxes": torch.tensor([[0.0, 0, x.shape[2], x.shape[1]]]), "labels": torch.tensor([1])} for x in pictures
    ]
    data = [(pictures[:2], targets[:2]), (pictures[2:], targets[2:])]
    found = evaluate(Boxes(1), data, metric="detection", reference=Boxes(2))
    assert (found.samples, found.flips, found.sqnr) == (3, 100.0, None)
    assert found.metrics["AP %"] == pytest.approx(100.0)
    assert found.reference_metrics["AP %"] == 0.0
    once = evaluate(Boxes(1), (each for each in data), metric="detection", reference=Boxes(2))
    assert (once.samples, once.metrics) == (3, found.metrics)
    alone = evaluate(Boxes(1), [pictures], metric="detection", reference=Boxes(1))
    assert (alone.against_reference, alone.flips) == (True, 0.0)
    with pytest.raises(DataError, match="has 2 pictures; give a list of as many targets"):
        evaluate(Boxes(1), [(pictures[:2], targets[:1])], metric="detection")


def test_what_a_metric_raises_is_told_in_a_line() -> None:
    class Failing:
        def update(self, outputs: Tensor, targets: Tensor) -> None:
            raise KeyError("boxes")

        def compute(self) -> dict[str, float]:
            return {}

    data = Dataset((torch.arange(3),), torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match=r"the metric Failing fails: KeyError: 'boxes'; the outputs are \[3, 3\]"):
        evaluate(Fixed(torch.eye(3)), data, metric=Failing())


class Heads(nn.Module):
    """Maps by name in a list, one element for each stack, as CenterNet and its like return them."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [{"hm": x[:, :2] + self.noise, "wh": x[:, 2:]}]


class Counting:
    def __init__(self) -> None:
        self.samples = 0

    def update(self, outputs: list[dict[str, Tensor]], targets: Tensor) -> None:
        self.samples += len(targets)

    def compute(self) -> dict[str, float]:
        return {"samples": self.samples}


@pytest.mark.parametrize("samples", [1, 4])
def test_maps_by_name_in_a_list_have_noise(samples: int) -> None:
    """They are no list of one dictionary a picture, whose boxes have none."""

    data = [(torch.ones(samples, 4, 3, 3), torch.zeros(samples))]
    found = evaluate(Heads(0.1), data, metric=Counting(), reference=Heads())
    assert found.sqnr == pytest.approx(20.0, abs=1e-3)
    assert found.outputs == {"0.hm": pytest.approx(20.0, abs=1e-3), "0.wh": found.outputs["0.wh"]}
    assert found.outputs["0.wh"] >= 100
