"""Each metric against numbers worked out by hand, or by another library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from brecq import metrics
from brecq.errors import ConfigError, DataError
from brecq.metrics.embeddings import spearman


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_classification() -> None:
    metric = metrics.Classification()
    scores = torch.arange(10.0).repeat(20, 1)  # class 9 first, then 8, 7, 6, 5
    metric.update(scores, torch.tensor([9] * 5 + [8] * 3 + [5] * 2 + [4] * 10))
    assert metric.compute() == {"top-1 %": 25.0, "top-5 %": 50.0}
    other = scores.clone()
    other[0, 0] = 99
    metric.compare(other, scores)
    assert metric.flips() == 5.0
    with pytest.raises(DataError, match="label 10"):
        metric.update(scores, torch.full((20,), 10))


def test_segmentation() -> None:
    metric = metrics.Segmentation()
    found = torch.tensor([[[0, 0, 1], [1, 1, 2]]])
    scores = torch.nn.functional.one_hot(found, 4).permute(0, 3, 1, 2).float()
    masks = [np.array([[0, 1, 1], [1, 255, 2]], dtype=np.uint8)]
    metric.update({"out": scores, "aux": scores}, masks)
    # of five pixels four are right; class 0: 1/2, 1: 2/3, 2: 1; class 3 does not occur
    assert metric.compute() == pytest.approx({"mIoU %": 100 * (1 / 2 + 2 / 3 + 1) / 3, "pixel accuracy %": 80.0})
    metric.compare(scores.flip(3), scores, masks)
    assert metric.flips() == pytest.approx(80.0)  # 1 0 0, 2 (ignored) 1: four of five are others


def test_masks_in_black_and_white_are_told_of() -> None:
    scores = torch.randn(1, 2, 4, 4, generator=generator())
    mask = torch.zeros(1, 4, 4, dtype=torch.uint8)
    mask[:, 2:] = 255
    metric = metrics.Segmentation()
    metric.update(scores, mask)
    told = "the masks hold class 0 alone beside 255, which does not count; check that they are class indices"
    assert metric.notes() == [told]
    metric.update(scores, mask.clamp(max=1))
    assert metric.notes() == []
    plain = metrics.Segmentation()
    plain.update(scores, mask * 0)  # one class, and every pixel counts
    assert plain.notes() == []


def test_segmentation_interpolates_scores_to_the_mask() -> None:
    metric = metrics.Segmentation()
    scores = torch.zeros(1, 2, 4, 4)
    scores[:, 1, :, 2:] = 1.0
    scores[:, 0] = 1 - scores[:, 1]
    mask = torch.zeros(1, 8, 8, dtype=torch.int64)
    mask[:, :, 4:] = 1
    metric.update(scores, mask)
    assert metric.compute()["pixel accuracy %"] == 100.0


def test_restoration_is_what_scikit_image_computes() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    truth = torch.rand(2, 3, 32, 32, generator=generator())
    found = (truth + 0.1 * torch.randn(truth.shape, generator=generator(1))).clamp(0, 1)
    metric = metrics.Restoration(low=-1, high=1)
    metric.update(found * 2 - 1, truth * 2 - 1)
    psnr = [
        skimage.peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1.0)
        for a, b in zip(truth, found, strict=True)
    ]
    ssim = [
        skimage.structural_similarity(
            a.numpy(), b.numpy(), data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(truth, found, strict=True)
    ]  # fmt: skip
    values = metric.compute()
    assert values["PSNR dB"] == pytest.approx(np.mean(psnr), abs=1e-4)
    assert values["SSIM"] == pytest.approx(np.mean(ssim), abs=2e-3)  # they treat the border otherwise
    metric.compare(truth, truth)
    assert metric.flips() == 0.0


def test_targets_are_not_compared_in_another_order() -> None:
    found = torch.rand(2, 3, 4, 4)
    metric = metrics.Regression()
    metric.update(found, found.reshape(2, 3, 1, 4, 4))
    assert metric.compute()["RMSE"] == 0
    with pytest.raises(DataError, match=r"the targets \[2, 4, 4, 3\]; they must be equal"):
        metric.update(found, found.permute(0, 2, 3, 1))  # as many numbers, in another order


def test_regression() -> None:
    metric = metrics.Regression()
    metric.update(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
    assert metric.compute() == pytest.approx({"RMSE": math.sqrt(2), "MAE": 1.0})
    assert (metric.flips(), metric.notes()) == (None, [])


def test_targets_that_were_not_measured_are_left_out() -> None:
    nan, inf = math.nan, math.inf
    metric = metrics.Regression()
    metric.update(torch.tensor([[1.0, 5.0], [2.0, 0.0]]), torch.tensor([[1.0, nan], [4.0, 0.0]]))
    metric.update(torch.tensor([[7.0, 7.0]]), torch.full((1, 2), nan))
    assert metric.compute() == pytest.approx({"RMSE": math.sqrt(4 / 3), "MAE": 2 / 3})
    assert metric.notes() == ["3 of 6 target values are NaN and left out"]
    with pytest.raises(DataError, match="infinite values; where they mark what was not measured, make them NaN"):
        metric.update(torch.zeros(2), torch.tensor([0.0, inf]))
    pictures = torch.rand(2, 3, 16, 16)
    with pytest.raises(DataError, match="the targets hold NaN, and a similarity is of whole pictures"):
        metrics.Restoration().update(pictures, torch.where(pictures > 0.9, nan, pictures))
    with pytest.raises(DataError, match="the targets hold NaN or infinite values"):
        metrics.Embeddings().update(torch.ones(2, 3), torch.full((2, 3), nan))


def test_embeddings() -> None:
    found = torch.randn(12, 5, generator=generator())
    metric = metrics.Embeddings()
    metric.update(found, found * torch.rand(12, 1, generator=generator(1)))  # lengths do not matter
    assert metric.compute() == pytest.approx({"cosine": 1.0, "rank correlation": 1.0}, abs=1e-5)
    metric.compare(found, found)
    assert metric.flips() == 0.0
    labelled = metrics.Embeddings()
    labelled.update(torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]), torch.tensor([0, 0, 1, 2]))
    assert labelled.compute() == {"recall@1 %": 50.0}


def test_rank_correlation_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    a = torch.randint(5, (40,), generator=generator()).float()  # with ties
    b = a + torch.randn(40, generator=generator(1))
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert spearman(a, torch.ones(40)) == 0.0


def test_language_model() -> None:
    tokens = torch.tensor([[0, 1, 2, 1]])
    logits = torch.zeros(1, 4, 3)
    metric = metrics.LanguageModel()
    metric.update(logits, tokens)
    assert metric.compute() == pytest.approx({"perplexity": 3.0, "nats a token": math.log(3)})
    other = logits.clone()
    other[0, 0, 2] = 1.0
    metric.compare(other, logits)
    assert metric.flips() == pytest.approx(100 / 3)
    for wrong in (3, -1):
        with pytest.raises(DataError, match=f"a token {wrong}, and the network knows 0 to 2; targets of -100 do not"):
            metric.update(logits, torch.tensor([[0, 1, 2, wrong]]))
    ignoring = metrics.LanguageModel(shift=False)
    ignoring.update(other, torch.tensor([[-100, 1, 1, 1]]))
    assert ignoring.compute()["nats a token"] == pytest.approx(math.log(3))


BOXES = torch.tensor([[10.0, 10, 50, 50], [60, 60, 160, 180], [5, 100, 25, 120]])
TARGET = {"boxes": BOXES, "labels": torch.tensor([0, 1, 1])}


def test_detection_finds_everything_or_half() -> None:
    pytest.importorskip("faster_coco_eval")
    metric = metrics.Detection(labels="index")
    metric.update([{"boxes": BOXES, "scores": torch.tensor([0.9, 0.8, 0.7]), "labels": TARGET["labels"]}], [TARGET])
    found = metric.compute()
    assert found["AP %"] == found["AP50 %"] == pytest.approx(100.0)
    assert found["AP small %"] == pytest.approx(100.0)
    half = metrics.Detection(labels="index")
    half.update([{"boxes": BOXES[:2], "scores": torch.tensor([0.9, 0.8]), "labels": TARGET["labels"][:2]}], [TARGET])
    # class 0: all, class 1: one of two, which 51 of the 101 points of recall see
    assert half.compute()["AP50 %"] == pytest.approx(100 * (1 + 51 / 101) / 2, abs=0.01)


def test_detection_selects_candidates_and_brings_boxes_back() -> None:
    pytest.importorskip("faster_coco_eval")
    placed = torch.tensor([[0.5, 0.5, 16.0, 8.0]])[0]
    inside = BOXES * 0.5 + torch.tensor([16.0, 8, 16, 8])
    candidates = torch.cat([inside, inside + 0.2])[None]  # each twice: the second is suppressed
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]])
    labels = torch.tensor([[0, 1, 1, 0, 1, 1]])
    metric = metrics.Detection(decode=lambda outputs: (outputs[0], scores, labels))
    metric.update([candidates], [{**TARGET, "placed": placed.tolist(), "size": (200, 200)}])
    assert metric.compute()["AP %"] == pytest.approx(100.0)
    assert len(metric.boxes([candidates])[0]["boxes"]) == 3


def test_detection_with_a_score_for_each_class() -> None:
    pytest.importorskip("faster_coco_eval")
    scores = torch.tensor([[[0.9, 0.0, 0.0], [0.1, 0.8, 0.0], [0.0, 0.7, 0.01]]])
    metric = metrics.Detection()
    target = {**TARGET, "categories": torch.tensor([1, 90, 90])}  # columns are counted, whatever the numbers
    metric.update((BOXES[None], scores), [target])
    (found,) = metric.boxes((BOXES[None], scores))
    assert found["labels"].tolist() == [0, 1, 1, 0]
    assert found["scores"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.1])
    assert metric.compute()["AP50 %"] == pytest.approx(100.0)


def test_detections_that_changed() -> None:
    pytest.importorskip("torchvision")
    expected = [{"boxes": BOXES, "scores": torch.tensor([0.9, 0.8, 0.1]), "labels": torch.tensor([0, 1, 1])}]
    found = [{"boxes": BOXES + 1, "scores": torch.tensor([0.9, 0.8, 0.1]), "labels": torch.tensor([0, 2, 1])}]
    metric = metrics.Detection()
    metric.compare(found, expected)  # of two sure boxes each, one has another class
    assert metric.flips() == 50.0


def test_categories_are_those_of_the_dataset() -> None:
    pytest.importorskip("faster_coco_eval")
    target = {**TARGET, "categories": torch.tensor([1, 90, 90])}
    found = [{"boxes": BOXES, "scores": torch.ones(3), "labels": torch.tensor([1, 90, 90])}]
    by_category, by_index = metrics.Detection(), metrics.Detection(labels="index")
    by_category.update(found, [target])
    by_index.update(found, [target])
    assert by_category.compute()["AP %"] == pytest.approx(100.0)
    assert by_index.compute()["AP %"] == 0.0


@pytest.mark.parametrize(("area", "size"), [(None, "medium"), (0.0, "medium"), (100.0, "small"), (9999.0, "large")])
def test_the_size_of_an_object_is_its_area_or_that_of_its_box(area: float | None, size: str) -> None:
    pytest.importorskip("faster_coco_eval")
    box = {"boxes": torch.tensor([[0.0, 0.0, 40.0, 40.0]]), "labels": torch.ones(1, dtype=torch.int64)}
    metric = metrics.Detection()
    metric.update([{**box, "scores": torch.ones(1)}], [box if area is None else {**box, "area": torch.tensor([area])}])
    sized = {name: value for name, value in metric.compute().items() if len(name.split()) == 3}
    assert sized == pytest.approx({f"AP {size} %": 100.0})


def detected(**target: object) -> metrics.Detection:
    """A metric that has got one picture without boxes found."""
    metric = metrics.Detection()
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}
    metric.update([none], [{"labels": [1], **target}])
    return metric


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ({"boxes": [[1, 2, math.nan, 4]]}, r"box 0 of picture 0, \[1.0, 2.0, nan, 4.0\], is not finite; give x1, y1"),
        ({"boxes": [[10, 20, 5, 40]]}, "has no area"),  # x, y, width, height
        ({"boxes": [[50, 2, 60, 4]], "size": (20, 40)}, "is wholly outside its picture of 40x20 pixels"),
        ({"boxes": [[0, 0, 5, 5]], "area": [math.nan]}, "box 0 of picture 0 has area nan, no number of pixels"),
        (
            {"boxes": [[0, 0, 5, 5]], "area": [-1]},
            "has area -1, no number of pixels; without one it is that of the box",
        ),
        ({"boxes": [[0, 0, 5, 5]], "iscrowd": [2]}, "has iscrowd 2, which is 1 for a crowd, and otherwise 0"),
        ({"boxes": [[0, 0, 5, 5]], "labels": [-100]}, "has labels -100, no class; classes are whole numbers from 0"),
        ({"boxes": [[0, 0, 5, 5]], "labels": [1.5]}, r"has labels 1\.5, no class"),
        ({"boxes": [[0] * 8]}, r"of picture 0 have the shape \[1, 8\]; give \[M, 4\]"),
        ({"boxes": [[0, 0, 1, 1]] * 2}, "of picture 0 has 2 boxes and 1 labels; give one for each"),
        ({"boxes": [[0, 0, 1, 1]], "iscrowd": [0, 1]}, "has 1 boxes and 2 iscrowd"),
    ],
)
def test_boxes_that_cannot_be_right(target: dict[str, object], why: str) -> None:
    with pytest.raises(DataError, match=why):
        detected(**target)


def test_boxes_that_hardly_are_right() -> None:
    inside, rounded, beyond = [5, 5, 20, 10], [0, 0, 40.1, 20], [30, 5, 70, 10]
    few, many = (
        detected(boxes=[inside] * count + [rounded, beyond], labels=[1] * (count + 2), size=(20, 40))
        for count in (8, 7)
    )
    assert few.notes() == []
    assert many.notes()[0].startswith("1 of 9 boxes of the targets stick out of their pictures; check that they are x")
    assert detected(boxes=[], labels=[], size=(20, 40)).notes() == []


def test_a_network_without_targets_is_not_judged_by_boxes_without_area() -> None:
    found = [{"boxes": torch.tensor([[5.0, 5, 5, 9], [1, 1, 2, 2]]), "scores": torch.ones(2), "labels": torch.ones(2)}]
    (sure,) = metrics.Detection().targets_of(found)
    assert sure["boxes"].tolist() == [[1, 1, 2, 2]]


def test_what_is_no_detection() -> None:
    metric = metrics.Detection()
    with pytest.raises(DataError, match=r"0 \[1, 80, 4, 4\].*--decode"):
        metric.boxes([torch.zeros(1, 80, 4, 4)])
    with pytest.raises(DataError, match="decode\\(outputs\\) fails: ZeroDivisionError"):
        _failing().boxes([])


def _failing() -> metrics.Detection:
    def decode(outputs: object) -> object:
        raise ZeroDivisionError("nothing")

    return metrics.Detection(decode=decode)


def test_tasks_by_name() -> None:
    for name in metrics.TASKS:
        assert metrics.task_metric(name).name == name
    with pytest.raises(ConfigError, match="'detecton'; choose one of classification"):
        metrics.task_metric("detecton")


@pytest.mark.parametrize("with_targets", [True, False])
def test_a_detector_that_is_sure_of_nothing_is_told_of(with_targets: bool) -> None:
    def found(score: float) -> list[dict[str, torch.Tensor]]:
        box = torch.tensor([[0.0, 0, 8, 8]])
        return [{"boxes": box, "scores": torch.tensor([score]), "labels": torch.tensor([1])}]

    for score, told in ((0.29, True), (0.3, False)):
        metric = metrics.Detection()
        targets = found(1.0) if with_targets else metric.targets_of(found(score))
        metric.update(found(0.9), targets)
        metric.compare(found(0.9), found(score))
        assert len(metric.notes()) == told
        if told:
            (note,) = metric.notes()
            assert note.startswith("no box of the float network has a score of 0.3 or more")
            assert ("there is no AP against it" in note) == (not with_targets)
