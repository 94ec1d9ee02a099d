"""Handwritten digits of scikit-learn, and a small network that learns them in some ten seconds."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

WEIGHTS = Path("digits.safetensors")


def data(part):
    """Images [N, 1, 16, 16] in 0..1 and their labels: 1 297 of `train`, 500 of `test`."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(images, size=16, mode="bilinear")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    chosen = order[:1297] if part == "train" else order[1297:]
    return images[chosen], torch.tensor(digits.target)[chosen]


def conv(inputs, outputs, kernel, stride=1, groups=1):
    weights = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(weights, nn.BatchNorm2d(outputs))


class Inverted(nn.Module):
    """An inverted residual: wide, depthwise, narrow again."""

    def __init__(self, channels, expansion=4):
        super().__init__()
        wide = channels * expansion
        self.expand, self.depthwise = conv(channels, wide, 1), conv(wide, wide, 3, groups=wide)
        self.project = conv(wide, channels, 1)

    def forward(self, x):
        y = torch.relu(self.depthwise(torch.relu(self.expand(x))))
        return x + self.project(y)


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv(1, 16, 3, stride=2)
        self.body = nn.Sequential(Inverted(16), Inverted(16), conv(16, 32, 3, stride=2), nn.ReLU(), Inverted(32))
        self.head = nn.Linear(32, 10)

    def forward(self, images):
        return self.head(self.body(torch.relu(self.stem(images))).mean((2, 3)))


def train(network):
    torch.manual_seed(0)
    images, labels = data("train")
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=8 * 21)
    for _ in range(8):
        for batch in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def build():
    """The trained network; trained once, then read from its file."""
    torch.manual_seed(0)
    network = Digits()
    if not WEIGHTS.exists():
        train(network)
        save_file(network.state_dict(), WEIGHTS)
    network.load_state_dict(load_file(WEIGHTS))
    network.example_inputs = (torch.rand(2, 1, 16, 16),)
    return network.eval()


if __name__ == "__main__":
    network = build()
    for part in ("train", "test"):
        images, labels = data(part)
        np.savez(f"{part}.npz", images=images, labels=labels)
    with torch.no_grad():
        print(f"{(network(images).argmax(1) == labels).float().mean():.1%} of the test images are right")
