from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import numpy.lib.format as npy
import pytest
import torch

import brecq
from brecq.data import Dataset, Form, Preprocessing, load_data
from brecq.data.arrays import split_selector
from brecq.errors import DataError

PREPROCESSING = Preprocessing((0.5,), (0.25,), (8, 8), None)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def save(tmp_path: Path, **arrays: object) -> Path:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    return tmp_path / "data.npz"


def load(path: Path | str, preprocessing: Preprocessing | None = PREPROCESSING, size: int | None = None) -> Dataset:
    return load_data(path, preprocessing, size, 0)


def test_selector() -> None:
    assert split_selector("a/b.npz") == (Path("a/b.npz"), [])
    assert split_selector(Path("a/b.npz:x_train,y_train")) == (Path("a/b.npz"), ["x_train", "y_train"])
    assert split_selector("a:b/c") == (Path("a:b/c"), [])


def test_pixels_of_the_right_size_are_only_normalized(tmp_path: Path) -> None:
    data = load(save(tmp_path, x=PIXELS, y=np.arange(6, dtype=np.uint8)))
    expected = (torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    torch.testing.assert_close(data.inputs[0], expected)
    assert data.labels.tolist() == list(range(6))
    assert data.labels.dtype == torch.int64
    assert data.names[0] == "data.npz[0]"
    with_margin = PREPROCESSING.replace(resize=10)  # for photographs; stored pixels of the right size need no crop
    assert torch.equal(load(save(tmp_path, x=PIXELS), with_margin).inputs[0], data.inputs[0])


def test_pixels_of_another_size_are_scaled(tmp_path: Path) -> None:
    data = load(save(tmp_path, images=np.full((2, 20, 30, 3), 255, np.uint8)))
    assert torch.equal(data.inputs[0], torch.full((2, 3, 8, 8), 2.0))


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 8, 8, 1), (6, 8, 8, 4)])
def test_gray_and_alpha(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert load(save(tmp_path, x=np.zeros(shape, np.uint8))).inputs[0].shape == (6, 3, 8, 8)


def test_floats_and_tokens_are_inputs_as_they_are(tmp_path: Path) -> None:
    values = np.random.rand(4, 5, 6)
    data = load(save(tmp_path, inputs=values, labels=np.arange(4)[:, None]), None)
    assert torch.equal(data.inputs[0], torch.from_numpy(values).float())
    assert data.labels.tolist() == [0, 1, 2, 3]
    tokens = load(save(tmp_path, x=np.arange(12, dtype=np.int32).reshape(4, 3)), None)
    assert tokens.inputs[0].dtype == torch.int64
    mask = np.eye(4, dtype=bool)
    assert torch.equal(load(save(tmp_path, x=mask), None).inputs[0], torch.eye(4, dtype=torch.bool))


def test_whole_numbers_below_zero_are_targets_of_a_regression(tmp_path: Path) -> None:
    """Whether they may be class indices is for the metric to say."""
    data = load(save(tmp_path, x=np.zeros((3, 1), np.float32), y=np.array([-4, 0, 4])), None)
    assert brecq.evaluate(torch.nn.Identity(), data, metric="regression").metrics["MAE"] == pytest.approx(8 / 3)
    with pytest.raises(DataError, match="there is a label -4, and the network has classes 0 to 1"):
        brecq.evaluate(torch.nn.Linear(1, 2), data, metric="classification")


def test_sample_draws_inputs_and_labels_alike(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.arange(50.0)[:, None], y=np.arange(50))
    data = load(path, None, 20)
    assert data.inputs[0][:, 0].tolist() == data.labels.tolist()
    assert len(set(data.labels.tolist())) == 20
    assert data.names == [f"data.npz[{i}]" for i in data.labels.tolist()]


def test_splits(tmp_path: Path) -> None:
    path = save(
        tmp_path, x_train=np.zeros((3, 2)), y_train=np.zeros(3, int), x_test=np.ones((2, 2)), y_test=np.ones(2, int)
    )
    for selector in ("x_test", "test", "x_test,y_test"):
        data = load(f"{path}:{selector}", None)
        assert data.inputs[0].tolist() == [[1, 1], [1, 1]]
        assert data.labels.tolist() == [1, 1]
    with pytest.raises(DataError, match=r"several splits; it holds x_train, .*such as data.npz:x_train"):
        load(path, None)
    only = save(tmp_path, x_test=np.ones((2, 2)), y_test=np.ones(2, int))
    assert load(only, None).labels.tolist() == [1, 1]


class Takes(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        return x + y


class TakesOne(torch.nn.Module):
    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return x


def test_arrays_named_as_the_network_s_inputs_are_its_inputs(tmp_path: Path) -> None:
    """Also where they are called as inputs and labels of other networks are."""
    x = np.zeros((3, 2))
    path = save(tmp_path, x=x, ids=np.arange(3), y=x, labels=np.arange(3), index=x)
    read = load_data(path, None, None, 0, form=Form(model=Takes()))
    assert (read.keys, read.labels.tolist()) == (("x", "ids", "y"), [0, 1, 2])  # type: ignore[union-attr]
    for model in (None, TakesOne()):
        one = load_data(path, None, None, 0, form=Form(model=model))
        assert (one.keys, len(one.inputs), one.labels) == ((), 1, None)


def test_several_inputs(tmp_path: Path) -> None:
    path = save(tmp_path, ids=np.zeros((3, 4), int), mask=np.ones((3, 4)), targets=np.arange(3))
    for selector in (f"{path}:ids,mask,targets", path):  # without names all of them, as forward calls them
        data = load(selector, None)
        assert data.keys == ("ids", "mask")
        assert [x.dtype for x in data.inputs] == [torch.int64, torch.float32]
        assert data.labels.tolist() == [0, 1, 2]


def test_the_only_input_may_have_any_name(tmp_path: Path) -> None:
    data = load(save(tmp_path, features=np.ones((3, 4))), None)
    assert (data.inputs[0].shape, data.keys, data.labels) == ((3, 4), (), None)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.zeros(3)}, "has no inputs; it holds labels: save them as x, or as forward calls them"),
        ({"x": np.zeros((0, 3))}, "x of .* is empty"),
        ({"x": np.zeros((3, 2)), "y": np.arange(2)}, "y of .* has shape .2,., x holds 3 samples"),
        ({"x": np.zeros((3, 2)), "y": np.array(["a", "b", "c"])}, "y of .* is <U1; give class indices"),
        ({"x": np.array(["a", "b"])}, "x of .* is <U1"),
        ({"x": np.array([None, None])}, "cannot read"),
        ({"x": np.zeros((2, 3, 8, 8), np.uint8)}, "channels last"),
        ({"x": np.array([[1.0], [np.nan]])}, r"sample 1 \(data.npz\[1\]\) holds NaN"),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(save(tmp_path, **arrays))


def test_bad_files_and_names(tmp_path: Path) -> None:
    path = save(tmp_path, x=PIXELS)
    (tmp_path / "broken.npz").write_bytes(path.read_bytes()[:100])
    (tmp_path / "text.npz").write_text("text")
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, PIXELS)
    with pytest.raises(DataError, match="is a single array"):
        load(tmp_path / "single.npz")
    with pytest.raises(DataError, match="cannot read"):
        load(tmp_path / "broken.npz")
    with pytest.raises(DataError, match=r"text.npz is no .npz file; write it with numpy.savez"):
        load(tmp_path / "text.npz")
    with pytest.raises(DataError, match="no array 'z'; it holds x"):
        load(f"{path}:z")
    with pytest.raises(DataError, match="names 0 inputs and 1 labels"):
        load(f"{save(tmp_path, y=np.arange(3))}:y")
    for shape in ((2, 0, 4), (2, 4, 0, 3)):
        with pytest.raises(DataError, match="pictures without a pixel"):
            load(save(tmp_path, x=np.zeros(shape, np.uint8)))
    with pytest.raises(DataError, match=r"put the labels into the \.npz"):
        load_data(path, PREPROCESSING, None, 0, labels=tmp_path / "labels.csv")


def test_pixels_without_a_preprocessing_are_for_networks_that_convert_them(tmp_path: Path) -> None:
    found = load(save(tmp_path, x=PIXELS), None).inputs[0]
    assert found.dtype == torch.uint8
    assert found.numpy().tobytes() == PIXELS.tobytes()


def test_cifar(shared_data: Path) -> None:
    preprocessing = Preprocessing.imagenet(32).replace(resize=None)
    data = load_data(f"{shared_data / 'cifar10.npz'}:x_train,y_train", preprocessing, 64, 0)
    assert data.inputs[0].shape == (64, 3, 32, 32)
    assert set(data.labels.tolist()) <= set(range(10))
    assert data.digest() == load_data(f"{shared_data / 'cifar10.npz'}:train", preprocessing, 64, 0).digest()


@pytest.mark.parametrize("shape", [(2, 3), (9, 3), (10**12,), (0,), (2**31, 2**31)])
def test_headers_that_lie_about_the_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "lies.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as stream:
        npy.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
        stream.write(b"\0" * 4 * 12)
    promised = 4 * math.prod(shape)
    with pytest.raises(DataError, match=f"x of .*lies.npz should hold .* {promised} bytes, but holds 48"):
        load(path)
