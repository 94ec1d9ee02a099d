from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from brecq.errors import SourceError
from brecq.sources.weights import fit_classes, load_weights, read_weights


def net(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)},
        lambda s: {"state_dict": {"module." + k: v for k, v in s.items()}},
        lambda s: {"_orig_mod.module." + k: v for k, v in s.items()},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
        lambda s: {k: v.half().float() if k != "3.bias" else v for k, v in s.items()},
    ],
)
def test_usual_checkpoints(tmp_path: Path, wrap: Callable[[dict[str, torch.Tensor]], object]) -> None:
    trained, fresh = net(), net()
    for parameter in trained.parameters():
        parameter.data = parameter.data.half().float()
    torch.save(wrap(trained.state_dict()), tmp_path / "w.pth")
    load_weights(fresh, read_weights(tmp_path / "w.pth"), tmp_path / "w.pth")
    assert same(trained, fresh)


def test_safetensors(tmp_path: Path) -> None:
    trained, fresh = net(), net()
    save_file({f"module.{k}": v for k, v in trained.state_dict().items()}, tmp_path / "w.safetensors")
    load_weights(fresh, read_weights(tmp_path / "w.safetensors"), tmp_path / "w.safetensors")
    assert same(trained, fresh)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["BRECQ_TEST_EVIL"],)


def test_pickle_is_executed_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "executed"
    monkeypatch.setenv("BRECQ_TEST_EVIL", str(marker))
    torch.save({"state_dict": net().state_dict(), "extra": Evil()}, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"refers to \S*mkdir, .*pass trust_pickle if you trust"):
        read_weights(tmp_path / "w.pt")
    assert not marker.exists()
    assert "0.weight" in read_weights(tmp_path / "w.pt", trust_pickle=True)
    assert marker.exists()


def test_pickled_module_when_trusted(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"refers to torch\.nn\.modules\.container\.Sequential"):
        read_weights(tmp_path / "w.pt")
    assert "0.weight" in read_weights(tmp_path / "w.pt", trust_pickle=True)


def test_names_that_do_not_fit() -> None:
    state = net().state_dict()
    del state["3.bias"]
    state["head.bias"] = torch.zeros(3)
    with pytest.raises(
        SourceError, match=r"w.pt does not fit Sequential: 1 missing \(3.bias\); 1 unexpected \(head.bias\)"
    ):
        load_weights(net(), state, Path("w.pt"))
    with pytest.raises(SourceError, match=r"8 missing .*none of the names agree"):
        load_weights(net(), {"a": torch.zeros(1)}, Path("w.pt"))


def test_many_names_are_cut_short() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    with pytest.raises(
        SourceError, match=r"10 missing \(0.weight, 0.bias, 1.weight, ...\); .*weights of another model"
    ):
        load_weights(model, {"x": torch.zeros(1)}, Path("w.pt"))


def test_shapes_that_do_not_fit_leave_the_model_alone() -> None:
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(SourceError, match=r"3.weight: file \[5, 4\], model \[3, 4\].*file.py:function"):
        load_weights(model, net(5).state_dict(), Path("w.pt"))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_number_of_classes_is_taken_from_the_file() -> None:
    fitted = fit_classes(net(), {f"module.{k}": v for k, v in net(7).state_dict().items()}, net)
    assert fitted[3].out_features == 7
    model = net()
    assert fit_classes(model, net().state_dict(), net) is model
    other = net().state_dict()
    other["3.weight"] = torch.zeros(7, 5)
    assert fit_classes(model, other, net) is model


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "w.onnx").write_text("text")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(net().state_dict(), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:500])
    for name, message in (
        ("absent.pt", "there is no weights file"),
        ("text.pt", "not a readable PyTorch file"),
        ("cut.pt", "not a readable PyTorch file"),
        ("text.safetensors", "not a readable safetensors file"),
        ("w.onnx", "ends in '.onnx'"),
        ("empty.pt", "no tensors but epoch"),
        ("list.pt", "holds a list"),
    ):
        with pytest.raises(SourceError, match=message):
            read_weights(tmp_path / name)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool])
def test_integer_codes_are_no_weights(dtype: torch.dtype) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    codes = {"weight": torch.ones(2, 3, dtype=dtype), "bias": torch.ones(2)}
    with pytest.raises(SourceError, match=rf"of another type \(weight: file {dtype}, model torch.float32\).*scales"):
        load_weights(model, codes, Path("codes.pt"))
    assert torch.equal(model.weight, before)
    load_weights(model, {name: value.half() for name, value in model.state_dict().items()}, Path("half.pt"))
