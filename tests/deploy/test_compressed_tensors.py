"""compressed-tensors: the package reads our weights back bit for bit, and transformers loads and runs the folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import brecq
from brecq import LayerRule, QuantConfig, QuantResult
from brecq.checkpoint.tensors import PackedWeight, collect_tensors
from brecq.deploy.formats import Exported
from brecq.errors import ExportError

Quantized = Callable[..., QuantResult]

pytest.importorskip("compressed_tensors", reason="needs compressed-tensors: pip install 'brecq[compressed-tensors]'")


def export(result: QuantResult, path: Path, **options: Any) -> Exported:
    return brecq.export(result, path, "compressed-tensors", **options)


def read(folder: Path) -> dict[str, Tensor]:
    """Weights of the layers that the configuration names, decompressed by the package; the rest as it is stored."""
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    stored = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    for scheme in QuantizationConfig.model_validate(config).config_groups.values():
        for layer in scheme.targets:
            names = [key for key in stored if key.startswith(f"{layer}.weight")]
            compressed = {key.removeprefix(f"{layer}."): stored.pop(key) for key in names}
            stored[f"{layer}.weight"] = PackedQuantizationCompressor.decompress(compressed, scheme)["weight"]
    return stored


@pytest.mark.parametrize(
    ("bits", "scheme"),
    [(2, "symmetric"), (3, "symmetric"), (4, "symmetric"), (4, "asymmetric"), (8, "symmetric"), (8, "asymmetric")],
)
def test_the_package_reads_our_weights_bit_for_bit(
    quantized: Quantized, tmp_path: Path, bits: int, scheme: str
) -> None:
    result = quantized("ViT", bits, 32, weight_scheme=scheme, rules=(LayerRule("blocks.1.fc1", weights=32),))
    export(result, tmp_path / "out")
    ours = collect_tensors(result.converted)
    theirs = read(tmp_path / "out")
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        assert torch.equal(theirs[name], value if isinstance(value, Tensor) else value.dequantize()), name
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for layer, inputs in (("blocks.0.attn.qkv", 16), ("blocks.0.fc2", 32)):
        outputs = stored[f"{layer}.weight_scale"].shape[0]
        assert stored[f"{layer}.weight_packed"].shape == (outputs, -(-inputs * bits // 32))
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["patch", "blocks.1.fc1"]  # a convolution, and a layer that stayed float


def test_transformers_loads_and_runs_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=8, patch_size=4,
        num_labels=5,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(settings).eval()
    model.config.save_pretrained(tmp_path / "float")
    from brecq.sources.huggingface import ImageClassifier

    x = torch.randn(4, 3, 8, 8)
    config = QuantConfig(weights=3, activations=32, method="rtn", weight_scheme="symmetric")
    result = brecq.quantize(ImageClassifier(model), x, config)
    made = {name for name in collect_tensors(result.converted) if name.endswith("_folded")}  # constants of the graph
    assert all(name.startswith("model.") for name in collect_tensors(result.converted).keys() - made)
    export(result, tmp_path / "out", model_config=str(tmp_path / "float" / "config.json"))
    loaded, info = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=x).logits, result.model(x))
        assert not torch.allclose(model(pixel_values=x).logits, result.model(x), atol=1e-3)


class Tied(nn.Module):
    """The embedding's weight is the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ViT", {"activations": 8}, r"quantizes \d+ activations.*--activation-bits 32"),
        (
            "ViT",
            {"weights": 3},
            r"blocks\.0\.attn\.qkv.*5 more.* asymmetric at 3 bits.*--weight-scheme symmetric",
        ),
        ("ViT", {"weights": 5, "weight_scheme": "symmetric"}, r"at 5 bits; choose from 2, 3, 4, 8"),
        ("FPN", {}, "no quantized linear layer"),
        ("Functional", {}, "fc whose weight .* leave them float"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_before_writing(
    quantized: Quantized, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export(quantized(name, **{"activations": 32} | options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_weight_tied_to_an_embedding_is_refused(tmp_path: Path) -> None:
    config = QuantConfig(weights=4, activations=32, method="rtn")
    result = brecq.quantize(Tied().eval(), torch.randint(12, (4, 3)), config)
    assert any(isinstance(value, PackedWeight) for value in collect_tensors(result.converted).values())
    with pytest.raises(ExportError, match="shared"):
        export(result, tmp_path / "out")


def test_files_that_cannot_be_read_or_written(quantized: Quantized, tmp_path: Path) -> None:
    result = quantized("ViT", 4, 32)
    with pytest.raises(ExportError, match=r"cannot read .*nothing\.json"):
        export(result, tmp_path / "out", model_config=str(tmp_path / "nothing.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ExportError, match="no JSON object"):
        export(result, tmp_path / "out", model_config=str(tmp_path / "list.json"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="choose another place"):
        export(result, tmp_path / "file")
    export(result, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    export(result, tmp_path / "out")  # again, over it
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_computed_constants_are_pointed_out(tmp_path: Path) -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Parameter(torch.randn(4)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x + self.table.exp())

    config = QuantConfig(weights=4, activations=32, method="rtn")
    result = brecq.quantize(Biased().eval(), torch.randn(4, 4), config)
    exported = export(result, tmp_path / "out")
    assert any("table_folded" in note for note in exported.notes)
