"""Attention over images for bench/prune_structures.py: windows, strides, channels, objects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from prune_convolutions import Classifier, Table, conv, floats
from prune_sequences import Attended
from torch import Tensor, nn


class Windows(nn.Module):
    """MaxViT: attention within windows, then over a grid, with a table of relative positions."""

    def __init__(self, c: int, heads: int = 4, size: int = 4):
        super().__init__()
        self.h, self.s, self.norm = heads, size, nn.LayerNorm(c)
        self.qkv, self.o = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.table = nn.Parameter(torch.randn((2 * size - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
        rel = at.flatten(1)[:, :, None] - at.flatten(1)[:, None] + size - 1
        self.register_buffer("index", rel[0] * (2 * size - 1) + rel[1])
        self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))

    def attend(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.h, c // self.h).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1)
        p = (q @ k.transpose(-2, -1) * 0.3 + bias).softmax(-1)
        return self.o((p @ v).transpose(1, 2).reshape(b, n, c))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        s = self.s
        for order in ((0, 2, 4, 3, 5, 1), (0, 3, 5, 2, 4, 1)):
            shape = (n, c, h // s, s, w // s, s) if order[1] == 2 else (n, c, s, h // s, s, w // s)
            y = x.view(shape).permute(order).reshape(-1, s * s, c)
            y = y + self.attend(y)
            y = y + self.mlp(y)
            sizes = [shape[k] for k in order]
            back = [order.index(k) for k in range(6)]
            x = y.view(sizes).permute(back).reshape(n, c, h, w)
        return x


class CrossCovariance(nn.Module):
    """XCiT: attention between channels of a head instead of tokens, and local convolutions."""

    def __init__(self, c: int, heads: int = 4):
        super().__init__()
        self.h, self.n1, self.qkv, self.o = (
            heads,
            nn.LayerNorm(c),
            nn.Linear(c, 3 * c),
            nn.Linear(c, c),
        )
        self.t = nn.Parameter(torch.ones(heads, 1, 1))
        self.local = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1, groups=c), nn.GELU(), nn.BatchNorm2d(c)
        )
        self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.n1(y)).reshape(n, h * w, 3, self.h, -1).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        a = ((q @ k.transpose(-2, -1)) * self.t).softmax(-1)
        y = y + self.o((a @ v).permute(0, 3, 1, 2).reshape(n, h * w, c))
        z = y.transpose(1, 2).reshape(n, c, h, w)
        y = (z + self.local(z)).flatten(2).transpose(1, 2)
        return (y + self.mlp(y)).transpose(1, 2).reshape(n, c, h, w)


class Strided(nn.Module):
    """LeViT: queries of every other pixel, values wider than keys, a learned table of positions."""

    def __init__(self, c: int, out: int, heads: int = 4, key: int = 8, size: int = 16):
        super().__init__()
        self.h, self.k, self.v, self.s = heads, key, 4 * key, size
        self.kv, self.q = nn.Linear(c, heads * 5 * key), nn.Linear(c, heads * key)
        self.o = nn.Sequential(nn.Hardswish(), nn.Linear(heads * 4 * key, out))
        self.table = nn.Parameter(torch.randn(heads, size * size))
        r = torch.arange(size)
        at = (2 * r[: size // 2, None] - r[None]).abs()
        self.register_buffer(
            "index", (at[:, None, :, None] * size + at[None, :, None]).reshape(size * size // 4, -1)
        )
        self.mlp = nn.Sequential(nn.Linear(out, 2 * out), nn.Hardswish(), nn.Linear(2 * out, out))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = x.flatten(2).transpose(1, 2)
        k, v = self.kv(y).view(n, h * w, self.h, -1).split([self.k, self.v], 3)
        q = self.q(y.view(n, h, w, c)[:, ::2, ::2].reshape(n, h * w // 4, c))
        q = q.view(n, -1, self.h, self.k).permute(0, 2, 1, 3)
        a = q @ k.permute(0, 2, 3, 1) * self.k**-0.5 + self.table[:, self.index]
        y = (a.softmax(-1) @ v.permute(0, 2, 1, 3)).transpose(1, 2).reshape(n, -1, self.h * self.v)
        y = self.o(y)
        return (y + self.mlp(y)).transpose(1, 2).reshape(n, -1, h // 2, w // 2)


class ConvolvedQueries(nn.Module):
    """CvT: queries, keys and values by depthwise convolutions, keys at half the resolution."""

    def __init__(self, c: int, heads: int = 4):
        super().__init__()
        self.h = heads
        self.d = nn.ModuleList(conv(c, c, 3, s, c, act=False) for s in (1, 2, 2))
        self.p = nn.ModuleList(nn.Linear(c, c) for _ in range(4))
        self.mlp = nn.Sequential(
            nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = (
            p(d(x).flatten(2).transpose(1, 2)).view(n, -1, self.h, c // self.h).transpose(1, 2)
            for d, p in zip(self.d, self.p, strict=False)
        )
        y = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        y = x.flatten(2).transpose(1, 2) + self.p[3](y.transpose(1, 2).reshape(n, -1, c))
        return (y + self.mlp(y)).transpose(1, 2).reshape(n, c, h, w)


class SplitDepthwise(nn.Module):
    """EdgeNeXt: depthwise convolutions of parts in a row, then attention between channels."""

    def __init__(self, c: int, scale: int = 3):
        super().__init__()
        self.w = -(-c // scale)
        self.convs = nn.ModuleList(
            nn.Conv2d(self.w, self.w, 3, padding=1, groups=self.w) for _ in range(scale - 1)
        )
        self.x, self.norm = CrossCovariance(c), nn.GroupNorm(1, c)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.w, 1)
        done = [self.convs[0](parts[0])]
        for k, f in enumerate(self.convs[1:], 1):
            done.append(f(done[-1] + parts[k]))
        return self.x(self.norm(x + torch.cat([*done, parts[-1]], 1)))


class Detection(nn.Module):
    """DETR and YOLOS: tokens for objects beside those of patches, and heads that read them."""

    def __init__(self, c: int = 32, queries: int = 5):
        super().__init__()
        self.p, self.q = nn.Conv2d(3, c, 8, 8), nn.Parameter(torch.randn(1, queries, c))
        self.at, self.n = nn.Parameter(torch.randn(1, 16 + queries, c)), queries
        self.blocks = nn.ModuleList(Attended(c) for _ in range(3))
        self.label, self.box = (
            nn.Sequential(nn.Linear(c, 2 * c), nn.ReLU(), nn.Linear(2 * c, o)) for o in (11, 4)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.p(x).flatten(2).transpose(1, 2)
        y = torch.cat([y, self.q.expand(len(x), -1, -1)], 1) + self.at
        for b in self.blocks:
            y = b(y)
        return self.label(y[:, -self.n :]), self.box(y[:, -self.n :]).sigmoid()


TABLE: Table = {
    "windows_and_grid": (lambda: Classifier(32, Windows(32)), floats(2, 3, 32, 32)),
    "cross_covariance": (lambda: Classifier(32, CrossCovariance(32)), floats(2, 3, 32, 32)),
    "strided_attention": (lambda: Classifier(32, Strided(32, 48), out=48), floats(2, 3, 32, 32)),
    "convolved_queries": (lambda: Classifier(32, ConvolvedQueries(32)), floats(2, 3, 32, 32)),
    "split_depthwise": (lambda: Classifier(36, SplitDepthwise(36)), floats(2, 3, 32, 32)),
    "detection_tokens": (Detection, floats(2, 3, 32, 32)),
}
