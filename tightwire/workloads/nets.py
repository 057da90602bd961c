"""Small networks of many kinds, so that what is said of plans does not rest on one: text, images, regression.

Networks for text map (sequences, length + 1) bytes to the mean cross-entropy, in nats per byte. Networks for images map
(n, 1, 16, 16) images to (n, classes) logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BYTES = 256
SIDE = 16


class ByteRecurrent(nn.Module):
    """An LSTM or a GRU that predicts the next byte."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], *, width: int, embedded: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, embedded)
        self.recurrent = kind(embedded, width, num_layers=layers, batch_first=True)
        self.head = nn.Linear(width, BYTES)

    def forward(self, passages: Tensor) -> Tensor:
        """Returns the mean cross-entropy."""
        hidden, _ = self.recurrent(self.embedding(passages[:, :-1]))
        return _cross_entropy(self.head(hidden), passages)


class ByteConvolution(nn.Module):
    """Causal convolutions with residuals that predict the next byte."""

    def __init__(self, *, width: int, layers: int, reach: int = 5) -> None:
        super().__init__()
        self.reach = reach
        self.embedding = nn.Embedding(BYTES, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, reach) for _ in range(layers))
        self.head = nn.Linear(width, BYTES)

    def forward(self, passages: Tensor) -> Tensor:
        """Returns the mean cross-entropy."""
        x = self.embedding(passages[:, :-1]).transpose(1, 2)
        for layer in self.layers:
            x = x + functional.gelu(layer(functional.pad(x, (self.reach - 1, 0))))
        return _cross_entropy(self.head(x.transpose(1, 2)), passages)


class ByteWindow(nn.Module):
    """A multilayer perceptron over a window of bytes (Bengio et al. 2003)."""

    def __init__(self, *, window: int, embedded: int, width: int) -> None:
        super().__init__()
        self.window = window
        self.embedding = nn.Embedding(BYTES, embedded)
        self.hidden, self.head = nn.Linear(window * embedded, width), nn.Linear(width, BYTES)

    def forward(self, passages: Tensor) -> Tensor:
        """Returns the mean cross-entropy of what follows each whole window."""
        windows = self.embedding(passages[:, :-1]).unfold(1, self.window, 1).flatten(2)
        return _cross_entropy(self.head(torch.tanh(self.hidden(windows))), passages[:, self.window - 1 :])


class ByteNgrams(nn.Module):
    """A table of hashed n-grams, most rows of which have no gradient in a step, that predicts the next byte."""

    def __init__(self, *, rows: int, width: int, orders: tuple[int, ...] = (1, 2, 3, 4)) -> None:
        super().__init__()
        self.rows, self.orders = rows, orders
        self.table = nn.Embedding(rows, width)
        self.head = nn.Linear(width, BYTES)

    def forward(self, passages: Tensor) -> Tensor:
        """Returns the mean cross-entropy of what follows each whole n-gram of the longest order."""
        text, longest = passages[:, :-1], max(self.orders)
        hashed = []
        for order in self.orders:
            grams = text[:, longest - order :].unfold(1, order, 1)
            factors = torch.tensor([31**i for i in range(order)], device=text.device)
            hashed.append(((grams + 1) * factors).sum(-1).mul(order * 7919).remainder(self.rows))
        mixed = self.table(torch.stack(hashed)).sum(0)
        return _cross_entropy(self.head(functional.gelu(mixed)), passages[:, longest - 1 :])


def _cross_entropy(logits: Tensor, passages: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), passages[:, 1:].flatten())


class Residual(nn.Module):
    """Two convolutions with BatchNorm around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, width, h, w) to the same shape."""
        return functional.relu(x + self.layers(x))


def residual_net(classes: int, *, width: int = 64, blocks: int = 3) -> nn.Module:
    """Builds a residual convolutional net."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.ReLU(),
        *(Residual(width) for _ in range(blocks)),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * width, classes),
    )


def plain_net(classes: int, *, width: int = 32, hidden: int = 512) -> nn.Module:
    """Builds a convolutional net whose parameters are mostly in one fully connected layer, as VGG's are."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * (SIDE // 2) ** 2, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


class VisionTransformer(nn.Module):
    """Patches of 4 × 4 through a transformer's encoder."""

    def __init__(self, classes: int, *, width: int = 160, layers: int = 4, patch: int = 4) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch * patch, width)
        self.position = nn.Parameter(0.02 * torch.randn((SIDE // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits."""
        patches = images.squeeze(1).unfold(1, self.patch, self.patch).unfold(2, self.patch, self.patch)
        x = self.embed(patches.flatten(3).flatten(1, 2)) + self.position
        logits: Tensor = self.head(self.encoder(x).mean(1))
        return logits


def perceptron(inputs: int, outputs: int, *, width: int = 1024, layers: int = 2) -> nn.Module:
    """Builds a multilayer perceptron of flattened inputs."""
    inside = [part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.GELU())]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), nn.GELU(), *inside, nn.Linear(width, outputs)
    )


def autoencoder(*, width: int = 1024, code: int = 32) -> nn.Module:
    """Builds a perceptron that maps images through a narrow code to (n, pixels)."""
    pixels = SIDE * SIDE
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, width), nn.GELU(), nn.Linear(width, code), nn.GELU(),
        nn.Linear(code, width), nn.GELU(), nn.Linear(width, pixels),
    )  # fmt: skip
