"""Small networks of the shapes that the tests need. Loaded by the fixture `networks`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, outputs, 3, stride)
        self.conv2, self.bn2 = conv_bn(outputs, outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(*conv_bn(inputs, outputs, 1, stride)) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    """Three residual blocks; in-place operators everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, 8)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        hidden = inputs * expand
        self.skip = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *conv_bn(inputs, hidden, 1),
            nn.ReLU6(inplace=True),
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(inplace=True),
            *conv_bn(hidden, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


class MobileNet(nn.Module):
    """Inverted residuals with and without a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(*conv_bn(3, 8), nn.ReLU6(inplace=True)),
            InvertedResidual(8, 8, 1),
            InvertedResidual(8, 12, 2),
            InvertedResidual(12, 12, 1),
        )
        self.classifier = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class EdgeDetectors(nn.Module):
    """A depthwise convolution whose weights sum to zero in each channel, on activations of mean 2.

    Trained networks have such channels: their output is small, and rounding the weights to nearest breaks the sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16, bias=False)
        self.head = nn.Linear(16, 10)
        with torch.no_grad():
            self.stem.weight.mul_(0.5)
            self.stem.bias.fill_(2.0)
            self.depthwise.weight.sub_(self.depthwise.weight.mean((2, 3), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.depthwise(F.relu(self.stem(x)))).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class SENet(nn.Module):
    """A residual block with squeeze-and-excitation and swish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand, self.bn = conv_bn(8, 16, 1)
        self.se = SqueezeExcite(16)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        y = self.bn(self.expand(x))
        y = y * torch.sigmoid(y)
        x = x + self.project(self.se(y))
        return self.head(x.mean((2, 3)))


class ConcatNet(nn.Module):
    """Two branches of one input, concatenated in front of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 6, 3, padding=1)
        self.fuse = nn.Conv2d(10, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.max_pool2d(torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1), 2)
        return self.head(F.relu(self.fuse(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Patch embedding, class token, position embedding, two encoder blocks."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.Sequential(Encoder(width), Encoder(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class DoubleConv(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *conv_bn(inputs, outputs), nn.ReLU(inplace=True), *conv_bn(outputs, outputs), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class UNet(nn.Module):
    """Skips that span the network, joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.mid = DoubleConv(3, 8), DoubleConv(8, 16), DoubleConv(16, 32)
        self.up2, self.dec2 = nn.ConvTranspose2d(32, 16, 2, 2), DoubleConv(32, 16)
        self.up1, self.dec1 = nn.ConvTranspose2d(16, 8, 2, 2), DoubleConv(16, 8)
        self.out = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc1(x)
        b = self.enc2(F.max_pool2d(a, 2))
        c = self.mid(F.max_pool2d(b, 2))
        d = self.dec2(torch.cat([b, self.up2(c)], 1))
        return self.out(self.dec1(torch.cat([a, self.up1(d)], 1)))


class Functional(nn.Module):
    """Functional calls on bare parameters: no module tree at all."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in {
            "w0": (8, 3, 3, 3), "a1": (8, 8, 3, 3), "a2": (8, 8, 3, 3), "b1": (8, 8, 3, 3), "b2": (8, 8, 3, 3),
            "fc": (10, 8),
        }.items():  # fmt: skip
            self.register_parameter(name, nn.Parameter(torch.randn(shape) * 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.w0, padding=1))
        x = F.relu(x + F.conv2d(F.relu(F.conv2d(x, self.a1, padding=1)), self.a2, padding=1))
        x = x + F.conv2d(F.relu(F.conv2d(x, self.b1, padding=1)), self.b2, padding=1)
        return F.linear(x.relu_().mean((2, 3)), self.fc)


class TwoBranch(nn.Module):
    """Two inputs, two towers, one head."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x).mean((2, 3)), self.right(y).mean((2, 3))], 1))


class FPN(nn.Module):
    """A feature pyramid: three outputs, lateral connections, one head shared by all levels."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 8), (8, 16), (16, 32))
        self.body = nn.ModuleList([nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.ReLU()) for i, o in widths])
        self.lateral = nn.ModuleList([nn.Conv2d(i, 8, 1) for i in (8, 16, 32)])
        self.smooth = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = []
        for stage in self.body:
            x = stage(x)
            levels.append(x)
        levels = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        for i in (1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], scale_factor=2.0)
        return {f"p{i}": self.head(F.relu(s(p))) for i, (s, p) in enumerate(zip(self.smooth, levels, strict=True))}


class Shuffled(nn.Module):
    """A detector of ShuffleNet's kind: halves that are split, joined and shuffled; two scales, enlarged and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 16, 3, 2), nn.ReLU())
        self.down = nn.Sequential(*conv_bn(16, 16, 3, 2), nn.ReLU())
        self.branch = nn.Sequential(*conv_bn(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8))
        self.lateral, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(24, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stem(x)
        kept, turned = fine.chunk(2, 1)
        fine = self.shuffle(torch.cat([kept, F.relu(self.branch(turned))], 1))
        coarse = F.leaky_relu(self.lateral(self.down(fine)), 0.1)
        return self.head(torch.cat([fine, F.interpolate(coarse, scale_factor=2.0)], 1)), coarse

    @staticmethod
    def shuffle(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Signal(nn.Module):
    """1-D and transposed 1-D convolutions, grouped ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bn1 = nn.Conv1d(4, 8, 5, 2, 2, bias=False), nn.BatchNorm1d(8)
        self.depthwise = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.up, self.bn2 = nn.ConvTranspose1d(8, 8, 4, 2, 1, groups=2, bias=False), nn.BatchNorm1d(8)
        self.out = nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.down(x)))
        return self.out(F.relu(self.bn2(self.up(F.relu(self.depthwise(x))))))


class Spotter(nn.Module):
    """Separable 1-D convolutions and the average of a sequence, as in keyword spotting."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv1d(4, 8, 5, 2, 2, bias=False), nn.BatchNorm1d(8)
        self.depthwise, self.pointwise = nn.Conv1d(8, 8, 3, padding=1, groups=8), nn.Conv1d(8, 12, 1)
        self.pool, self.head = nn.AdaptiveAvgPool1d(1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.stem(x)))
        return self.head(self.pool(F.relu(self.pointwise(F.relu(self.depthwise(x))))).flatten(1))


class Wide(nn.Module):
    """A linear layer on all of a feature map, as in AlexNet and VGG: more inputs than there are samples."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.hidden, self.head = nn.Linear(6 * 8 * 8, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(F.relu(self.stem(x)).flatten(1))))


class StandardizedConv(nn.Conv2d):
    """Weight standardization: the weight used is computed from the parameter in every call."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Standardized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = StandardizedConv(3, 8, 3, padding=1)
        self.conv, self.bn = StandardizedConv(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.bn(self.conv(F.relu(self.stem(x))))).mean((2, 3)))


class Recurrent(nn.Module):
    """One convolution applied three times: a weight that several blocks share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.step = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(3):
            x = F.relu(self.step(x))
        return self.head(x.mean((2, 3)))


class RandomDag(nn.Module):
    """A random graph of convolutions, additions, concatenations and products; `seed` decides all of it."""

    def __init__(self, seed: int, size: int = 10) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(high: int) -> int:
            return int(torch.randint(high, (1,), generator=generator))

        self.plan: list[tuple[str, int, int]] = []
        self.convs = nn.ModuleDict()
        for i in range(size):
            kind = ("conv", "conv", "conv", "add", "cat", "mul", "relu", "gate")[draw(8)]
            a, b = draw(i + 1), draw(i + 1)
            if i and draw(2):
                a = i  # often a chain
            self.plan.append((kind, a, b))
            if kind in ("conv", "cat", "gate"):
                inputs, kernel = 12 if kind == "cat" else 6, 3 if kind == "conv" else 1
                self.convs[str(i)] = nn.Conv2d(inputs, 6, kernel, padding=kernel // 2)
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 3)
        self.early = draw(size) if draw(2) else None  # a second output from the middle of the network

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        values = [self.stem(x)]
        for i, (kind, a, b) in enumerate(self.plan):
            x, y = values[a], values[b]
            if kind == "conv":
                x = self.convs[str(i)](x)
            elif kind == "cat":
                x = self.convs[str(i)](torch.cat([x, y], 1))
            elif kind == "gate":
                x = x * self.convs[str(i)](y.mean((2, 3), keepdim=True)).sigmoid()
            else:
                x = {"add": x + y, "mul": x * y.tanh(), "relu": F.relu(x)}[kind]
            values.append(x)
        out = self.head(values[-1].mean((2, 3)))
        return out if self.early is None else (out, values[self.early])


class CifarBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, outputs, 3, stride)
        self.conv2, self.bn2 = conv_bn(outputs, outputs)
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet-20 of He et al. 2016, with parameter-free shortcuts."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, 16)
        inputs = 16
        for stage, (outputs, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
            layers = []
            for i in range(blocks):
                layers.append(CifarBlock(inputs, outputs, stride if i == 0 else 1))
                inputs = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


class Queries(nn.Module):
    """Learned vectors beside what a layer makes of the inputs: a constant that is quantized as an activation is."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 4, 8))
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.queries.expand(x.shape[0], -1, -1), self.embed(x)], 1))


_INPUTS: dict[type[nn.Module], tuple[tuple[int, ...], ...]] = {
    TwoBranch: ((3, 16, 16), (3, 16, 16)),
    Signal: ((4, 32),),
    Spotter: ((4, 32),),
    UNet: ((3, 16, 16),),
    Queries: ((5, 6),),
}


def build(network: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The network in eval mode with random weights and batch norm statistics that are far from the identity."""
    torch.manual_seed(seed)
    model = network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def inputs(model: nn.Module, samples: int = 2, seed: int = 1) -> tuple[Tensor, ...]:
    """Random inputs of the model, `samples` each."""
    generator = torch.Generator().manual_seed(seed)
    shapes = _INPUTS.get(type(model), ((3, 16, 16),))
    return tuple(torch.randn(samples, *shape, generator=generator) for shape in shapes)


def gratings(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures [N, 3, 16, 16] to learn from: coloured gratings in much noise. Labels [N]: five angles, two widths."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (samples,), generator=generator)
    angle, frequency = (labels % 5) * (math.pi / 5), torch.where(labels < 5, 0.6, 1.2)
    phase = 2 * math.pi * torch.rand(samples, generator=generator)
    color = 0.4 + 0.8 * torch.rand(samples, 3, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    along = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y
    waves = (frequency[:, None, None] * along + phase[:, None, None]).sin()
    return color * waves[:, None] + 1.4 * torch.randn(samples, 3, 16, 16, generator=generator), labels


def train(network: Callable[[], nn.Module], steps: int = 100) -> nn.Module:
    """The network in eval mode, trained on gratings for a few seconds: nearly all of them are told apart."""
    torch.manual_seed(0)
    model = network().train()
    images, labels = gratings(1024, seed=0)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(labels), (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


class Flat(nn.Module):
    """A detector as Darknet writes it: one list of modules, shortcuts and routes in `forward`, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: list[tuple[str, ...]] = []
        self.modules_list = nn.ModuleList()
        self._conv(3, 8)
        for width in (8, 16):
            self._conv(width, 2 * width, stride=2)
            for _ in range(2):
                self._conv(2 * width, width, 1)
                self._conv(width, 2 * width)
                self._add("short")
        route = len(self.plan) - 1
        self._conv(32, 64, stride=2)
        for inputs, outputs, kernel in ((64, 32, 1), (32, 64, 3), (64, 32, 1), (32, 64, 3)):
            self._conv(inputs, outputs, kernel)
        self._add("out", nn.Conv2d(64, 6, 1))
        self._add("route", "-3")
        self._conv(32, 16, 1)
        self._add("call", nn.Upsample(scale_factor=2))
        self._add("cat", str(route))
        for inputs, outputs, kernel in ((48, 16, 1), (16, 32, 3), (32, 16, 1)):
            self._conv(inputs, outputs, kernel)
        self._add("out", nn.Conv2d(16, 6, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        seen, found = [], []
        for (kind, *where), module in zip(self.plan, self.modules_list, strict=True):
            if kind == "short":
                x = seen[-1] + seen[-3]
            elif kind == "route":
                x = seen[int(where[0])]
            elif kind == "cat":
                x = torch.cat([seen[-1], seen[int(where[0])]], 1)
            elif kind == "out":
                found.append(module(x))
            else:
                x = module(x)
            seen.append(x)
        return found

    def _add(self, kind: str, *what: str | nn.Module) -> None:
        self.plan.append((kind, *(each for each in what if isinstance(each, str))))
        self.modules_list.append(next((each for each in what if isinstance(each, nn.Module)), nn.Identity()))

    def _conv(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        self._add("call", nn.Sequential(*conv_bn(inputs, outputs, kernel, stride), nn.LeakyReLU(0.1)))


class Scores(nn.Module):
    """Two outputs of one layer each; the second is `scale` times as large."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.stem, self.boxes, self.classes = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1)
        self.scale = scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).relu()
        return self.boxes(x), self.classes(x) * self.scale


class Shortcut(nn.Module):
    """A bottleneck of two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(width, width, 1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class CrossStage(nn.Module):
    """Half of the channels goes through modules and is joined with the other half: a C3 of YOLOv5, a C3k of YOLO11."""

    def __init__(self, width: int, inner: list[nn.Module]) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.enter(x).chunk(2, 1)
        return self.leave(torch.cat([first, self.inner(second)], 1)).relu()


class Split(nn.Module):
    """Modules of few layers that hold several residual ones, one of many, and heads that nothing joins again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.small = CrossStage(16, [Shortcut(8), Shortcut(8)])
        self.nested = CrossStage(16, [CrossStage(8, [Shortcut(4), Shortcut(4)])])
        self.large = CrossStage(16, [Shortcut(8) for _ in range(4)])
        self.maps, self.boxes = (
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(16, outputs, 1))
            for outputs in (5, 4)
        )

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        x = self.large(self.nested(self.small(self.stem(x).relu())))
        return [{"maps": self.maps(x).sigmoid_(), "boxes": self.boxes(x)}]
