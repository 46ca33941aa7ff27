"""Plain PyTorch models and training loop of the comparison."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def stack(sizes: tuple[int, ...], activation: type[nn.Module]) -> list[nn.Module]:
    """Return dense layers, each with its activation."""
    pairs = itertools.pairwise(sizes)
    return [part for a, b in pairs for part in (nn.Linear(a, b), activation())]


class VAE(nn.Module):
    """784 features to a Gaussian code and back to Bernoulli logits."""

    def __init__(self, latent: int, down: tuple[int, ...], up: tuple[int, ...], relu: bool):
        super().__init__()
        below = stack((784, *down), nn.Tanh)
        self.encoder = nn.Sequential(*below, nn.Linear(down[-1], 2 * latent))
        above = stack((latent, *up), nn.ReLU if relu else nn.Tanh)
        self.decoder = nn.Sequential(*above, nn.Linear(up[-1], 784))

    def loss(self, grey: torch.Tensor) -> torch.Tensor:
        """Return minus the mean ELBO of grey images (B, 784), dynamically binarized."""
        x = torch.bernoulli(grey)
        mean, log_variance = self.encoder(x).chunk(2, -1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        cross_entropy = functional.binary_cross_entropy_with_logits(
            self.decoder(z), x, reduction="sum"
        )
        kl = 0.5 * torch.sum(mean.square() + log_variance.exp() - 1 - log_variance)
        return (cross_entropy + kl) / len(x)


class Block(nn.Module):
    """Transformer block of GPT-2."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            part.view(batch, tokens, self.heads, -1).transpose(1, 2)
            for part in self.project(self.norm_1(x)).split(width, dim=2)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class GPT(nn.Module):
    """GPT-2 with tied embeddings, without dropout."""

    def __init__(self, vocabulary: int, layers: int, heads: int, width: int, block: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(block, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for weight in (self.tokens.weight, self.positions.weight):
            nn.init.normal_(weight, std=0.02)
        self.head.weight = self.tokens.weight

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the mean negative log-likelihood of the next tokens of sequences (B, T + 1)."""
        given, target = rows[:, :-1], rows[:, 1:]
        x = self.tokens(given) + self.positions.weight[: given.shape[1]]
        logits = self.head(self.norm(self.blocks(x)))
        return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def trained(
    model: Any,
    optimizer: torch.optim.Optimizer,
    data: torch.Tensor,
    clip: float | None,
) -> Callable[[np.ndarray], float]:
    """Return a function that trains on batches of the examples that it is given, (steps, B).

    It returns the last loss.
    """

    def train(order: np.ndarray) -> float:
        for rows in torch.from_numpy(order):
            optimizer.zero_grad()
            loss = model.loss(data[rows])
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
        return float(loss.detach())

    return train
