"""Pictures of squares and disks with YOLO's labels, and a small network like YOLOv8 that finds them.

`python shapes.py` writes the pictures to shapes/ and trains the network, in about half a minute.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import nn

from brecq.data import Preprocessing

FOLDER, WEIGHTS = Path("shapes"), Path("shapes.safetensors")
NAMES = ("square", "disk")
SIDE, STRIDES = 64, (8, 16)


def write(part, count, seed):
    """Pictures with one to three shapes, and a text file of `class cx cy w h` beside each."""
    generator = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (FOLDER / part / kind).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = generator.normal(110, 30, (8, 8, 3)).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        draw, lines = ImageDraw.Draw(picture), []
        places = generator.permutation(4)[: generator.integers(1, 4)]  # one of the four quarters each
        for place in places:
            size = int(generator.integers(10, 29))
            x, y = (int(32 * half + generator.integers(0, 32 - size)) for half in divmod(int(place), 2))
            kind = int(generator.integers(2))
            color = tuple(int(value) for value in generator.integers(0, 256, 3))
            (draw.ellipse if kind else draw.rectangle)((x, y, x + size - 1, y + size - 1), fill=color)
            lines.append(f"{kind} {(x + size / 2) / SIDE} {(y + size / 2) / SIDE} {size / SIDE} {size / SIDE}")
        picture.save(FOLDER / part / "images" / f"{index:03d}.png")
        (FOLDER / part / "labels" / f"{index:03d}.txt").write_text("\n".join(lines) + "\n")


def write_all():
    write("train", 384, 0)
    write("val", 96, 1)
    names = f"train: train/images\nval: val/images\nnames: [{', '.join(NAMES)}]\n"
    (FOLDER / "shapes.yaml").write_text(names)


def conv(inputs, outputs, kernel=1, stride=1):
    weights = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(weights, nn.BatchNorm2d(outputs), nn.SiLU())


class C2f(nn.Module):
    """Half of the channels goes through residual blocks, and everything on the way is joined again."""

    def __init__(self, channels, blocks=1):
        super().__init__()
        half = channels // 2
        self.enter, self.leave = conv(channels, channels), conv(half * (2 + blocks), channels)
        self.blocks = nn.ModuleList(nn.Sequential(conv(half, half, 3), conv(half, half, 3)) for _ in range(blocks))

    def forward(self, x):
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Pooled(nn.Module):
    """SPPF: what is there, and the largest of it nearby, near and farther."""

    def __init__(self, channels):
        super().__init__()
        self.enter, self.leave = conv(channels, channels // 2), conv(2 * channels, channels)

    def forward(self, x):
        found = [self.enter(x)]
        for _ in range(3):
            found.append(nn.functional.max_pool2d(found[-1], 5, 1, 2))
        return self.leave(torch.cat(found, 1))


class Yolo(nn.Module):
    """Maps [N, 4 + classes, h, w] at strides 8 and 16: distances to the four sides in strides, and class logits."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, 3, 2), conv(8, 16, 3, 2), C2f(16))
        self.stage3 = nn.Sequential(conv(16, 32, 3, 2), C2f(32))
        self.stage4 = nn.Sequential(conv(32, 64, 3, 2), C2f(64), Pooled(64))
        self.neck3 = nn.Sequential(conv(96, 32), C2f(32))
        self.down, self.neck4 = conv(32, 32, 3, 2), nn.Sequential(conv(96, 64), C2f(64))
        self.boxes = nn.ModuleList(nn.Sequential(conv(c, 32, 3), nn.Conv2d(32, 4, 1)) for c in (32, 64))
        self.classes = nn.ModuleList(nn.Sequential(conv(c, 32, 3), nn.Conv2d(32, len(NAMES), 1)) for c in (32, 64))

    def forward(self, x):
        fine = self.stage3(self.stem(x))
        coarse = self.stage4(fine)
        up = nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        fine = self.neck3(torch.cat([fine, up], 1))
        coarse = self.neck4(torch.cat([self.down(fine), coarse], 1))
        heads = zip((fine, coarse), self.boxes, self.classes, strict=True)
        return [torch.cat([boxes(level), classes(level)], 1) for level, boxes, classes in heads]


def cells(level, stride):
    """The middles [h · w, 2] of a map's cells, in pixels."""
    y, x = torch.meshgrid(torch.arange(level.shape[2]), torch.arange(level.shape[3]), indexing="ij")
    return (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride


def candidates(outputs):
    """Boxes [N, A, 4] in pixels, and class logits [N, A, classes]."""
    boxes, logits = [], []
    for level, stride in zip(outputs, STRIDES, strict=True):
        flat, middle = level.flatten(2).transpose(1, 2), cells(level, stride)
        near, far = (nn.functional.softplus(flat[..., each]) * stride for each in (slice(0, 2), slice(2, 4)))
        boxes.append(torch.cat([middle - near, middle + far], -1))
        logits.append(flat[..., 4:])
    return torch.cat(boxes, 1), torch.cat(logits, 1)


def decode(outputs):
    """What `--decode` calls: boxes, scores and labels of all candidates; brecq suppresses the overlapping ones."""
    boxes, logits = candidates(outputs)
    scores, labels = logits.sigmoid().max(-1)
    return boxes, scores, labels


def loss_of(outputs, boxes, labels):
    """Every shape [N, 3] belongs to the cell that its middle is in: small ones at stride 8, large ones at 16."""
    found, logits = candidates(outputs)
    size, middle = boxes[..., 2] - boxes[..., 0], (boxes[..., :2] + boxes[..., 2:]) / 2
    wide = SIDE // STRIDES[0]
    fine = (middle[..., 1] // 8 * wide + middle[..., 0] // 8).long()
    coarse = wide * wide + (middle[..., 1] // 16 * (wide // 2) + middle[..., 0] // 16).long()
    cell = torch.where(size < 20, fine, coarse)
    there = labels >= 0
    picture = torch.arange(len(boxes))[:, None].expand_as(cell)
    wanted = torch.zeros_like(logits)
    wanted[picture[there], cell[there], labels[there]] = 1
    classes = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    sides = (found[picture[there], cell[there]] - boxes[there]).abs().sum() / 8
    return (classes + sides) / len(boxes)


def read(part):
    """Pictures as the network takes them, boxes [N, 3, 4] in pixels and labels [N, 3], -1 where there is no shape."""
    _, preprocessing = untrained()
    files = sorted((FOLDER / part / "images").glob("*.png"))
    boxes, labels = torch.zeros(len(files), 3, 4), torch.full((len(files), 3), -1)
    for row, file in enumerate(files):
        for column, line in enumerate((FOLDER / part / "labels" / f"{file.stem}.txt").read_text().splitlines()):
            kind, x, y, w, h = map(float, line.split())
            boxes[row, column] = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * SIDE
            labels[row, column] = int(kind)
    return torch.stack([preprocessing(Image.open(file).convert("RGB")) for file in files]), boxes, labels


def train(network, epochs=25):
    torch.manual_seed(0)
    pictures, boxes, labels = read("train")
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=0.01)
    steps = epochs * -(-len(pictures) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(pictures)).split(32):
            loss = loss_of(network(pictures[batch]), boxes[batch], labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            schedule.step()


def untrained():
    torch.manual_seed(0)
    return Yolo(), Preprocessing((0.5,), (0.25,), SIDE, None, fit="letterbox")


def build():
    """The network with its weights, and how pictures become its inputs."""
    network, preprocessing = untrained()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval(), preprocessing


if __name__ == "__main__":
    write_all()
    network, _ = untrained()
    train(network)
    save_file(network.state_dict(), WEIGHTS)
