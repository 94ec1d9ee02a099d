"""The architectures of `zoo.py`: small variants with random weights, from timm, torchvision, transformers and by hand.

Each entry builds a model and a batch of inputs for it, as `brecq.quantize` takes them. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLES = 4

Batch = tuple[Tensor, ...] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """One network of the zoo.

    Attributes:
        source: `timm`, `torchvision`, `transformers` or `by hand`.
        build: makes the model. batch: makes its inputs, `SAMPLES` of each. submodule: the part that is quantized.
        fast: runs in the test suite.
    """

    source: str
    build: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    submodule: str | None = None
    fast: bool = False


ZOO: dict[str, Architecture] = {}


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The model in eval mode, with batch norm statistics that are far from the identity, and no zero layers.

    Many networks start residual branches with zero (the scale of the last norm, a layer scale of 1e-6): such a
    parameter gets values that make its branch count.
    """
    torch.manual_seed(seed)
    model = build()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                if module.weight is not None:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.1, generator=generator)
        for parameter in model.parameters():
            if parameter.dim() == 1 and float(parameter.abs().max()) < 1e-2:
                parameter.normal_(0, 0.1, generator=generator)
            elif parameter.dim() > 1 and not parameter.any():
                parameter.normal_(0, 0.02, generator=generator)
    return model.eval()


def images(size: int = 64, channels: int = 3) -> Callable[[], Batch]:
    return lambda: (torch.randn(SAMPLES, channels, size, size, generator=torch.Generator().manual_seed(1)),)


def floats(*shapes: tuple[int, ...]) -> Callable[[], Batch]:
    def make() -> Batch:
        generator = torch.Generator().manual_seed(1)
        return tuple(torch.randn(SAMPLES, *shape, generator=generator) for shape in shapes)

    return make


def tokens(vocabulary: int = 99, length: int = 16, *names: str) -> Callable[[], Batch]:
    """Token ids by name, `input_ids` by default; `attention_mask` is all ones but for one padded sample."""

    def make() -> Batch:
        generator = torch.Generator().manual_seed(1)
        found = {}
        for name in names or ("input_ids",):
            found[name] = torch.randint(2, vocabulary, (SAMPLES, length), generator=generator)
            if name.endswith("attention_mask"):
                found[name] = torch.ones(SAMPLES, length, dtype=torch.long)
                found[name][0, length // 2 :] = 0
        return found

    return make


def _timm(name: str, size: int = 64, fast: bool = False, key: str | None = None, **settings: Any) -> None:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=10, **settings)  # type: ignore[no-any-return]

    ZOO[key or name] = Architecture("timm", build, images(size), fast=fast)


_TIMM_CONVOLUTIONAL = (
    "resnet10t", "resnet18", "resnet26d", "resnext26ts", "seresnext26ts", "resnest14d", "skresnet18",
    "regnetx_002", "regnety_002", "efficientnet_lite0", "efficientnet_b0", "mobilenetv2_035", "mobilenetv3_small_050",
    "mobilenetv4_conv_small", "mnasnet_small", "tinynet_e", "ghostnet_050", "lcnet_035", "hardcorenas_a",
    "mixnet_s", "dla46_c", "hrnet_w18_small", "repvgg_a0", "repvit_m0_9", "mobileone_s0", "convnext_atto",
    "convnextv2_atto", "darknet17", "selecsls42", "ese_vovnet19b_slim_dw", "nf_regnet_b0", "nf_resnet26", "gernet_s",
    "hgnetv2_b0", "starnet_s1", "tf_efficientnetv2_b0", "inception_next_atto", "rexnet_100", "mambaout_femto",
    "edgenext_xx_small", "fbnetc_100", "res2net50_26w_4s", "cspresnet50", "densenet121", "legacy_xception",
    "eca_nfnet_l0",
)  # fmt: skip
for _name in _TIMM_CONVOLUTIONAL:
    _timm(_name)
_timm("inception_v3", 80, aux_logits=False)
_timm("xception41", 64)
_timm("nasnetalarge", 64, stem_size=24, channel_multiplier=2, num_features=96 * 6 * 2)

for _name, _size, _settings in (
    ("vit_tiny_patch16_224", 64, {"depth": 3}),
    ("deit_tiny_distilled_patch16_224", 64, {"depth": 3}),
    ("beit_base_patch16_224", 64, {"depth": 3, "embed_dim": 96, "num_heads": 3}),
    ("eva02_tiny_patch14_224", 56, {"depth": 3}),
    ("swin_tiny_patch4_window7_224", 64, {"window_size": 4, "depths": (2, 2), "embed_dim": 24, "num_heads": (1, 2)}),
    ("swinv2_tiny_window8_256", 64, {"window_size": 4, "depths": (2, 2), "embed_dim": 24, "num_heads": (1, 2)}),
    ("cait_xxs24_224", 64, {"depth": 2}),
    ("xcit_nano_12_p16_224", 64, {"depth": 2}),
    ("twins_pcpvt_small", 64, {"depths": (1, 1, 1, 1)}),
    ("twins_svt_small", 64, {"depths": (1, 1, 2, 1)}),
    ("crossvit_9_240", 240, {}),
    ("convit_tiny", 64, {"depth": 3, "local_up_to_layer": 2}),
    ("pit_ti_224", 96, {"depth": (1, 1, 1)}),
    ("coat_lite_tiny", 64, {"serial_depths": (1, 1, 1, 1)}),
    ("hiera_tiny_224", 64, {"stages": (1, 1, 1, 1)}),
):
    _timm(
        _name,
        _size,
        img_size=_size,
        fast=_name == "xcit_nano_12_p16_224",
        **_settings,
    )

for _name, _size, _settings in (
    ("pvt_v2_b0", 64, {"depths": (1, 1, 1, 1)}),
    ("levit_128s", 224, {"depth": (1, 1, 1)}),
    ("coatnet_nano_rw_224", 224, {"depths": (1, 1, 1, 1)}),
    ("maxvit_rmlp_pico_rw_256", 256, {"depths": (1, 1, 1, 1)}),
    ("visformer_tiny", 224, {"depth": (2, 1, 1)}),
    ("mobilevit_xxs", 64, {}),
    ("mobilevitv2_050", 64, {}),
    ("efficientformer_l1", 224, {"depths": (1, 1, 1, 2)}),
    ("efficientformerv2_s0", 224, {"depths": (1, 1, 1, 2)}),
    ("efficientvit_b0", 64, {}),
    ("efficientvit_m0", 224, {}),
    ("fastvit_t8", 64, {"layers": (1, 1, 1, 1)}),
    ("poolformer_s12", 64, {"layers": (1, 1, 1, 1)}),
    ("davit_tiny", 64, {"depths": (1, 1, 1, 1), "embed_dims": (24, 48, 48, 96), "num_heads": (1, 2, 2, 4)}),
    ("tiny_vit_5m_224", 64, {"depths": (1, 1, 2, 1)}),
    ("sequencer2d_s", 64, {"layers": (1, 1, 1, 1)}),
    ("nextvit_small", 64, {"depths": (1, 1, 5, 1)}),
):  # fmt: skip
    _timm(_name, _size, **_settings)


def _timm_class(key: str, size: int, build: Callable[[Any], nn.Module]) -> None:
    """A small variant whose function in timm fixes the depth: made from its class in the module `timm.models`."""

    def make() -> nn.Module:
        import timm.models

        return build(timm.models)

    ZOO[key] = Architecture("timm", make, images(size))


_MIXER = {"img_size": 64, "num_classes": 10, "num_blocks": 3, "embed_dim": 96}
_timm_class("mixer_s32_224", 64, lambda m: m.mlp_mixer.MlpMixer(patch_size=32, **_MIXER))
_timm_class("resmlp_12_224", 64, lambda m: m.mlp_mixer.MlpMixer(
    patch_size=16, mlp_ratio=4, block_layer=m.mlp_mixer.ResBlock, norm_layer=m.mlp_mixer.Affine, **_MIXER
))  # fmt: skip
_timm_class("gmlp_ti16_224", 64, lambda m: m.mlp_mixer.MlpMixer(
    patch_size=16, mlp_ratio=6, block_layer=m.mlp_mixer.SpatialGatingBlock, mlp_layer=m.mlp_mixer.GatedMlp, **_MIXER
))  # fmt: skip
_timm_class("volo_d1_224", 64, lambda m: m.volo.VOLO(
    layers=(1, 1, 1, 1), embed_dims=(24, 48, 48, 48), num_heads=(1, 2, 2, 2), img_size=64, num_classes=10
))  # fmt: skip
_timm_class("focalnet_tiny_srf", 64, lambda m: m.focalnet.FocalNet(depths=(1, 1, 1, 1), embed_dim=32, num_classes=10))
_timm_class("gcvit_xxtiny", 224, lambda m: m.gcvit.GlobalContextVit(
    depths=(1, 1, 1, 1), num_heads=(2, 4, 8, 16), embed_dim=32, num_classes=10
))  # fmt: skip
_timm_class("mvitv2_tiny", 224, lambda m: m.mvitv2.MultiScaleVit(
    m.mvitv2.MultiScaleVitCfg(depths=(1, 1, 1, 1), embed_dim=32), num_classes=10
))  # fmt: skip
_timm_class("caformer_s18", 64, lambda m: m.metaformer.MetaFormer(
    depths=(1, 1, 1, 1), dims=(32, 64, 96, 128), num_classes=10,
    token_mixers=[m.metaformer.SepConv] * 2 + [m.metaformer.Attention] * 2,
    norm_layers=[m.metaformer.LayerNorm2dNoBias] * 2 + [m.metaformer.LayerNormNoBias] * 2,
))  # fmt: skip


def _torchvision(key: str, build: Callable[[Any], nn.Module], batch: Callable[[], Batch], **settings: Any) -> None:
    def make() -> nn.Module:
        import torchvision

        return build(torchvision.models)

    ZOO[key] = Architecture("torchvision", make, batch, **settings)


_torchvision("squeezenet1_1", lambda m: m.squeezenet1_1(num_classes=10), images())
_torchvision("googlenet", lambda m: m.googlenet(num_classes=10, aux_logits=False, init_weights=False), images())
_torchvision("shufflenet_v2_x0_5", lambda m: m.shufflenet_v2_x0_5(num_classes=10), images(), fast=True)
_torchvision(
    "vgg11_bn",
    lambda m: m.VGG(m.vgg.make_layers([16, "M", 32, "M", 64, 64, "M", 512, "M"], batch_norm=True), 10),
    images(),
)
_torchvision("deeplabv3_mobilenet_v3_large", lambda m: m.segmentation.deeplabv3_mobilenet_v3_large(
    weights=None, weights_backbone=None, num_classes=5), images())  # fmt: skip
_torchvision("fcn_resnet50", lambda m: m.segmentation.fcn_resnet50(
    weights=None, weights_backbone=None, num_classes=5, aux_loss=True), images())  # fmt: skip
_torchvision("lraspp_mobilenet_v3_large", lambda m: m.segmentation.lraspp_mobilenet_v3_large(
    weights=None, weights_backbone=None, num_classes=5), images())  # fmt: skip
for _key, _part in (("fasterrcnn_mobilenet_v3_large_320_fpn", None), ("fasterrcnn backbone", "backbone")):
    _torchvision(_key, lambda m: m.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=5), images(64), submodule=_part)  # fmt: skip
_torchvision("ssdlite320_mobilenet_v3_large", lambda m: m.detection.ssdlite320_mobilenet_v3_large(
    weights=None, weights_backbone=None, num_classes=5), images(64))  # fmt: skip
_torchvision("retinanet_resnet50_fpn", lambda m: m.detection.retinanet_resnet50_fpn(
    weights=None, weights_backbone=None, num_classes=5), images(64))  # fmt: skip
_torchvision("r3d_18", lambda m: m.video.r3d_18(num_classes=10), floats((3, 4, 32, 32)))
_torchvision("mc3_18", lambda m: m.video.mc3_18(num_classes=10), floats((3, 4, 32, 32)))
_torchvision("r2plus1d_18", lambda m: m.video.r2plus1d_18(num_classes=10), floats((3, 4, 32, 32)))
_torchvision("s3d", lambda m: m.video.s3d(num_classes=10), floats((3, 16, 224, 224)))


class Flow(nn.Module):
    """RAFT with two updates of the flow, not twelve: they are unrolled."""

    def __init__(self, raft: nn.Module) -> None:
        super().__init__()
        self.raft = raft

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return self.raft(x, y, num_flow_updates=2)


_torchvision(
    "raft_small", lambda m: Flow(m.optical_flow.raft_small(weights=None)), floats((3, 128, 128), (3, 128, 128))
)


def _transformers(
    key: str, model: str, config: str, batch: Callable[[], Batch], fast: bool = False, **settings: Any
) -> None:
    def build() -> nn.Module:
        import transformers

        kind = getattr(transformers, f"{config}Config")
        return getattr(transformers, model)(kind(**settings))  # type: ignore[no-any-return]

    ZOO[key] = Architecture("transformers", build, batch, fast=fast)


_BERT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
_LLAMA = {**_BERT, "num_key_value_heads": 1, "use_cache": False, "pad_token_id": 0}
_VISION = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
           "intermediate_size": 64}  # fmt: skip
_masked = tokens(99, 16, "input_ids", "attention_mask")
_encoder_decoder = tokens(99, 16, "input_ids", "decoder_input_ids")
_transformers("bert", "BertForSequenceClassification", "Bert", _masked, **_BERT)
_transformers("roberta", "RobertaForMaskedLM", "Roberta", _masked, **_BERT)
_transformers("distilbert", "DistilBertForSequenceClassification", "DistilBert", _masked, vocab_size=99, dim=32,
              n_layers=2, n_heads=2, hidden_dim=64)  # fmt: skip
_transformers("albert", "AlbertForMaskedLM", "Albert", _masked, embedding_size=16, **_BERT)
_transformers("electra", "ElectraForSequenceClassification", "Electra", _masked, embedding_size=16, **_BERT)
_transformers("deberta_v2", "DebertaV2ForSequenceClassification", "DebertaV2", _masked, relative_attention=True,
              pos_att_type=["p2c", "c2p"], **_BERT)  # fmt: skip
_transformers("mobilebert", "MobileBertForMaskedLM", "MobileBert", _masked, embedding_size=32,
              intra_bottleneck_size=32, **_BERT)  # fmt: skip
_transformers("gpt2", "GPT2LMHeadModel", "GPT2", tokens(), vocab_size=99, n_embd=32, n_layer=2, n_head=2,
              use_cache=False, fast=True)  # fmt: skip
_transformers("gpt_neo", "GPTNeoForCausalLM", "GPTNeo", tokens(), vocab_size=99, hidden_size=32, num_layers=2,
              num_heads=2, attention_types=[[["global", "local"], 1]], use_cache=False)  # fmt: skip
_transformers("opt", "OPTForCausalLM", "OPT", tokens(), vocab_size=99, hidden_size=32, num_hidden_layers=2,
              num_attention_heads=2, ffn_dim=64, use_cache=False, word_embed_proj_dim=32)  # fmt: skip
_transformers("bloom", "BloomForCausalLM", "Bloom", tokens(), vocab_size=99, hidden_size=32, n_layer=2, n_head=2,
              use_cache=False)  # fmt: skip
_transformers("llama", "LlamaForCausalLM", "Llama", tokens(), **_LLAMA)
_transformers("mistral", "MistralForCausalLM", "Mistral", tokens(), **_LLAMA)
_transformers("qwen2", "Qwen2ForCausalLM", "Qwen2", tokens(), **_LLAMA)
_transformers("gemma", "GemmaForCausalLM", "Gemma", tokens(), head_dim=16, **_LLAMA)
_transformers("phi", "PhiForCausalLM", "Phi", tokens(), use_cache=False, **_BERT)
_transformers("t5", "T5ForConditionalGeneration", "T5", _encoder_decoder, fast=True, vocab_size=99, d_model=32,
              d_kv=16, d_ff=64, num_layers=2, num_heads=2, use_cache=False, decoder_start_token_id=0)  # fmt: skip
_transformers("bart", "BartForConditionalGeneration", "Bart", _encoder_decoder, vocab_size=99, d_model=32,
              encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
              encoder_ffn_dim=64, decoder_ffn_dim=64, use_cache=False)  # fmt: skip


def _whisper() -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 99, (SAMPLES, 8), generator=generator)
    return {"input_features": torch.randn(SAMPLES, 20, 40, generator=generator), "decoder_input_ids": ids}


_transformers("whisper", "WhisperForConditionalGeneration", "Whisper", _whisper, vocab_size=99, num_mel_bins=20,
              max_source_positions=20, max_target_positions=16, d_model=32, encoder_layers=2, decoder_layers=2,
              encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
              use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3)  # fmt: skip


def _clip() -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 98, (SAMPLES, 12), generator=generator)
    ids[:, -1] = 98
    pixels = torch.randn(SAMPLES, 3, 32, 32, generator=generator)
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones(SAMPLES, 12, dtype=torch.long)}


_CLIP_TEXT = {**_BERT, "max_position_embeddings": 16, "eos_token_id": 98}
_transformers("clip", "CLIPModel", "CLIP", _clip, text_config=_CLIP_TEXT, vision_config=_VISION, projection_dim=16)
_transformers("clip_vision", "CLIPVisionModel", "CLIPVision", images(32), fast=True, **_VISION)
_transformers("siglip_vision", "SiglipVisionModel", "SiglipVision", images(32), **_VISION)
_transformers("hf_vit", "ViTForImageClassification", "ViT", images(32), **_VISION)
_transformers("dinov2", "Dinov2Model", "Dinov2", images(32), **_VISION)
_transformers("hf_beit", "BeitForImageClassification", "Beit", images(32), **_VISION)
_transformers("yolos", "YolosForObjectDetection", "Yolos", images(32), **{
    **_VISION, "image_size": [32, 32], "num_detection_tokens": 5})  # fmt: skip
_transformers("wav2vec2", "Wav2Vec2ForCTC", "Wav2Vec2", floats((2000,)), vocab_size=32, hidden_size=32,
              num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=[16, 16, 16],
              conv_stride=[5, 4, 2], conv_kernel=[10, 8, 4], num_conv_pos_embeddings=16,
              num_conv_pos_embedding_groups=2)  # fmt: skip


def _detr() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
    return DetrForObjectDetection(DetrConfig(  # type: ignore[no-any-return]
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, num_queries=5,
    ))  # fmt: skip


ZOO["detr"] = Architecture("transformers", _detr, images(64))


class UNet(nn.Module):
    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        conv, up, norm = ((nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d), (nn.Conv3d, nn.ConvTranspose3d,
                          nn.BatchNorm3d))[rank - 2]  # fmt: skip
        self.pool = (F.max_pool2d, F.max_pool3d)[rank - 2]

        def pair(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(conv(i, o, 3, padding=1), norm(o), nn.ReLU(), conv(o, o, 3, padding=1), nn.ReLU())

        self.down1, self.down2, self.middle = pair(1, 8), pair(8, 16), pair(16, 16)
        self.up2, self.up1 = up(16, 16, 2, 2), up(16, 8, 2, 2)
        self.right2, self.right1, self.out = pair(32, 16), pair(16, 8), conv(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a, 2))
        c = self.right2(torch.cat([b, self.up2(self.middle(self.pool(b, 2)))], 1))
        return self.out(self.right1(torch.cat([a, self.up1(c)], 1)))


class Tagger(nn.Module):
    """Embedding, recurrent layers, a head on every token."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(99, 16), nn.LayerNorm(32)
        self.recurrent = kind(16, 16, batch_first=True, bidirectional=True)
        self.body, self.head = nn.Linear(32, 32), nn.Linear(32, 7)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.recurrent(self.embed(input_ids))[0]
        return self.head(F.relu(self.body(self.norm(x))))


class Translator(nn.Module):
    """`nn.Transformer`, encoder and decoder, with learned positions and a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(99, 32), nn.Parameter(torch.randn(16, 32) * 0.1)
        self.transformer = nn.Transformer(32, 2, 1, 1, 64, batch_first=True)
        self.head = nn.Linear(32, 99)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(decoder_input_ids.shape[1])
        x, y = (self.embed(ids) + self.positions for ids in (input_ids, decoder_input_ids))
        return self.head(self.transformer(x, y, tgt_mask=mask, tgt_is_causal=True))


class Stacked(nn.Module):
    """Two pictures through one encoder as one batch, compared."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.encoder(torch.cat([x, y])).mean((2, 3)).chunk(2)
        return self.head(torch.cat([a - b, a * b], 1))


class Coordinates(nn.Module):
    """CoordConv, writes into slices, a scalar beside the map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = (
            nn.Conv2d(5, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 4, 1),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        height, width = x.shape[2:]
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        place = torch.stack([rows, columns])[None].expand(x.shape[0], -1, -1, -1)
        y = F.relu(self.stem(torch.cat([x, place], 1)))
        y[:, :2] = y[:, 2:4] * 0.5
        z = torch.zeros_like(y)
        z[:, :, 1:-1] = self.body(y)[:, :, 1:-1]
        found = self.head(F.relu(z))
        return {"map": found, "energy": found.square().mean()}


class PreActivation(nn.Module):
    """Residual blocks whose norm is in front: it can be folded into no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8) for _ in range(4)])
        self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)])
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in (0, 2):
            y = self.convs[i](F.relu(self.norms[i](x)))
            x = x + self.convs[i + 1](F.relu(self.norms[i + 1](y)))
        return self.head(x.mean((2, 3)))


class Products(nn.Module):
    """Linear layers written as einsum, matmul and addmm, and a matrix for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(16, 16) * 0.2) for _ in range(3))
        self.bias, self.heads = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(2, 8, 8) * 0.3)
        self.mix, self.head = nn.Parameter(torch.randn(12, 12) * 0.3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        x = x + F.gelu(torch.addmm(self.bias, x.reshape(-1, c), self.a).view(n, t, c)) @ self.b
        x = x + self.mix @ torch.einsum("btc,cd->btd", x, self.c)
        heads = torch.einsum("bthi,hio->btho", x.view(n, t, 2, 8), self.heads)
        return self.head(x + heads.reshape(n, t, c))


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.body = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.PReLU(16), nn.Conv2d(16, 16, 3, padding=1))
                for _ in range(3)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for block in self.body:
            y = y + 0.2 * block(y)
        return F.pixel_shuffle(self.tail(y), 2) + F.interpolate(x, scale_factor=2, mode="bilinear")


class Temporal(nn.Module):
    """Dilated causal convolutions with weight norm."""

    def __init__(self) -> None:
        super().__init__()
        wrap = nn.utils.parametrizations.weight_norm
        self.convs = nn.ModuleList([wrap(nn.Conv1d(8, 8, 3, dilation=2**i)) for i in range(3)])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = x + F.relu(conv(F.pad(x, (2 * 2**i, 0))))
        return self.head(x[..., -1])


for _key, _build, _batch in (
    ("unet", UNet, images(32, 1)),
    ("unet_3d", lambda: UNet(3), floats((1, 8, 16, 16))),
    ("lstm_tagger", lambda: Tagger(nn.LSTM), tokens()),
    ("gru_tagger", lambda: Tagger(nn.GRU), tokens()),
    ("nn_transformer", Translator, _encoder_decoder),
    ("stacked_pair", Stacked, floats((3, 32, 32), (3, 32, 32))),
    ("coordinates", Coordinates, images(16)),
    ("preactivation", PreActivation, images(16)),
    ("products", Products, floats((12, 16))),
    ("super_resolution", SuperResolution, images(16)),
    ("temporal", Temporal, floats((8, 32))),
):
    _slower = _key in ("unet", "lstm_tagger", "gru_tagger")
    ZOO[_key] = Architecture("by hand", _build, _batch, fast=not _slower)
