"""Attention over sequences for bench/prune_structures.py: groups, latents, positions, masks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from prune_convolutions import Table, floats
from torch import Tensor, nn


def heads(x: Tensor, n: int) -> Tensor:
    """(b, t, n*h) as (b, n, t, h)."""
    return x.view(*x.shape[:2], n, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """(b, n, t, h) as (b, t, n*h)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, halves against halves."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Norm(nn.Module):
    """Root mean square over the last axis."""

    def __init__(self, c: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Attended(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, c: int, heads: int = 4):
        super().__init__()
        self.n1, self.n2, self.h = nn.LayerNorm(c), nn.LayerNorm(c), heads
        self.q, self.k, self.v, self.o = (nn.Linear(c, c) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        y = self.n1(x)
        q, k, v = (f(y).view(n, t, self.h, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = ((q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v).transpose(1, 2).reshape(n, t, c)
        x = x + self.o(y)
        return x + self.mlp(self.n2(x))


class Decoder(nn.Module):
    """A decoder with groups of keys and values, biases, rotary positions, norms of heads."""

    def __init__(self, groups: int, c: int = 32, n: int = 8, size: int = 8, normed: bool = False):
        super().__init__()
        self.e, self.n, self.g = nn.Embedding(40, c), n, groups
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "a": Norm(c),
                    "q": nn.Linear(c, n * size),
                    "k": nn.Linear(c, groups * size),
                    "v": nn.Linear(c, groups * size),
                    "o": nn.Linear(n * size, c),
                    "b": Norm(c),
                    "gate": nn.Linear(c, 2 * c),
                    "up": nn.Linear(c, 2 * c),
                    "down": nn.Linear(2 * c, c),
                    "qn": Norm(size) if normed else nn.Identity(),
                    "kn": Norm(size) if normed else nn.Identity(),
                }
            )
            for _ in range(2)
        )
        angle = torch.arange(16)[:, None] * 100 ** (-torch.arange(size // 2) / size * 2)[None]
        self.register_buffer("cos", torch.cat([angle.cos()] * 2, -1))
        self.register_buffer("sin", torch.cat([angle.sin()] * 2, -1))
        self.register_buffer("mask", torch.full((16, 16), -1e4).triu(1))
        self.f, self.head = Norm(c), nn.Linear(c, 40)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.e(ids)
        for m in self.layers:
            y = m["a"](x)
            q, k = m["qn"](heads(m["q"](y), self.n)), m["kn"](heads(m["k"](y), self.g))
            q, k = rotated(q, self.cos, self.sin), rotated(k, self.cos, self.sin)
            v, r = heads(m["v"](y), self.g), self.n // self.g
            k, v = (
                t[:, :, None].expand(-1, -1, r, -1, -1).reshape(len(t), self.n, 16, -1)
                for t in (k, v)
            )
            x = x + m["o"](joined(((q @ k.transpose(-2, -1)) * 0.3 + self.mask).softmax(-1) @ v))
            y = m["b"](x)
            x = x + m["down"](F.silu(m["gate"](y)) * m["up"](y))
        return self.head(self.f(x))


class Latent(nn.Module):
    """Keys and values from one small latent, part of each head with rotary positions (MLA)."""

    def __init__(self, c: int = 32, n: int = 4, size: int = 8, low: int = 16, rope: int = 4):
        super().__init__()
        self.n, self.s, self.r, self.low = n, size, rope, low
        self.q, self.down = nn.Linear(c, n * (size + rope)), nn.Linear(c, low + rope)
        self.norm, self.up, self.o = Norm(low), nn.Linear(low, 2 * n * size), nn.Linear(n * size, c)
        self.register_buffer("cos", torch.rand(16, rope))
        self.register_buffer("sin", torch.rand(16, rope))
        self.mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.SiLU(), nn.Linear(4 * c, c))
        self.head = nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, qr = heads(self.q(x), self.n).split([self.s, self.r], -1)
        low, kr = self.down(x).split([self.low, self.r], -1)
        k, v = heads(self.up(self.norm(low)), self.n).chunk(2, -1)
        kr = rotated(kr[:, None], self.cos, self.sin).expand(-1, self.n, -1, -1)
        q = torch.cat([q, rotated(qr, self.cos, self.sin)], -1)
        y = (q @ torch.cat([k, kr], -1).transpose(-2, -1) * 0.3).softmax(-1) @ v
        x = x + self.o(joined(y))
        return self.head(x + self.mlp(x))


class Positional(nn.Module):
    """wav2vec 2.0: a convolutional front, grouped positional convolutions, a transformer."""

    def __init__(self, c: int = 32, convs: int = 1, gated: bool = False):
        super().__init__()
        self.front = nn.ModuleList(
            nn.Conv1d(i, c, k, s) for i, k, s in ((1, 10, 5), (c, 3, 2), (c, 3, 2))
        )
        self.n, self.p = nn.ModuleList(nn.GroupNorm(c, c) for _ in self.front), nn.Linear(c, c)
        norm = nn.utils.parametrizations.weight_norm
        self.pos = nn.ModuleList(
            norm(nn.Conv1d(c, c, 9, padding=4, groups=4), dim=2) for _ in range(convs)
        )
        self.layers = nn.ModuleList((Gated if gated else Attended)(c) for _ in range(2))
        self.register_buffer("mask", torch.ones(2, 1, 49))

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for f, n in zip(self.front, self.n, strict=True):
            x = F.gelu(n(f(x)))
        x = self.p(x.transpose(1, 2)).transpose(1, 2) * self.mask[..., : x.shape[-1]]
        y = x
        for f in self.pos:
            y = F.gelu(f(y))
        x = (x + y).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x


class Gated(Attended):
    """WavLM: the table of relative positions is gated per head by the stream itself."""

    def __init__(self, c: int, heads: int = 4):
        super().__init__(c, heads)
        self.table, self.gate = nn.Embedding(32, heads), nn.Linear(c // heads, 8)
        self.scale = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        at = torch.arange(t)
        bias = self.table((at[None] - at[:, None]).clamp(-15, 16) + 15).permute(2, 0, 1)[None]
        a, b = self.gate(heads(x, self.h)).view(n, self.h, t, 2, 4).sum(-1).sigmoid().chunk(2, -1)
        bias = bias * (a * (b * self.scale - 1) + 2)
        y = self.n1(x)
        q, k, v = (heads(f(y), self.h) for f in (self.q, self.k, self.v))
        x = x + self.o(joined((q @ k.transpose(-2, -1) * 0.3 + bias).softmax(-1) @ v))
        return x + self.mlp(self.n2(x))


class Grouped(nn.Module):
    """SqueezeBERT: every linear layer a grouped convolution over channels first."""

    def __init__(self, c: int = 48, n: int = 6, groups: int = 2):
        super().__init__()
        self.n = n
        self.qkv = nn.ModuleList(nn.Conv1d(c, c, 1, groups=groups) for _ in range(3))
        self.o, self.a, self.b = (
            nn.Conv1d(c, c, 1),
            nn.Conv1d(c, 4 * c, 1, groups=groups),
            nn.Conv1d(4 * c, c, 1, groups=groups),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        n, c, t = x.shape
        q, k, v = (f(x).view(n, self.n, c // self.n, t) for f in self.qkv)
        p = (q.transpose(-2, -1) @ k * 0.3).softmax(-1)
        y = self.o((p @ v.transpose(-2, -1)).transpose(-2, -1).reshape(n, c, t))
        x = self.norms[0]((x + y).transpose(1, 2)).transpose(1, 2)
        y = self.b(F.gelu(self.a(x)))
        return self.norms[1]((x + y).transpose(1, 2)).transpose(1, 2)


class Relative(nn.Module):
    """Conformer: Transformer-XL positions shifted into place, a gated depthwise convolution."""

    def __init__(self, c: int = 32, n: int = 4, t: int = 12):
        super().__init__()
        self.n, self.p = n, nn.ModuleList(nn.Linear(c, c, bias=k != 3) for k in range(5))
        self.u, self.w = (nn.Parameter(torch.randn(n, c // n)) for _ in range(2))
        self.register_buffer("at", torch.randn(1, 2 * t - 1, c))
        self.f = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.SiLU(), nn.Linear(4 * c, c))
            for _ in range(2)
        )
        self.n1, self.n2, self.c1, self.c2 = (
            nn.LayerNorm(c),
            nn.LayerNorm(c),
            nn.Conv1d(c, 2 * c, 1),
            nn.Conv1d(c, c, 1),
        )
        self.d = nn.Sequential(
            nn.Conv1d(c, c, 7, padding=3, groups=c), nn.BatchNorm1d(c), nn.SiLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        x = x + 0.5 * self.f[0](x)
        y = self.n1(x)
        q = self.p[0](y).view(n, t, self.n, -1)
        k, v, r = (
            heads(self.p[1](y), self.n),
            heads(self.p[2](y), self.n),
            heads(self.p[3](self.at), self.n),
        )
        a = (q + self.u).transpose(1, 2) @ k.transpose(-2, -1)
        b = (q + self.w).transpose(1, 2) @ r.transpose(-2, -1)
        b = (
            F.pad(b, (1, 0))
            .view(n, self.n, 2 * t, t)[:, :, 1:]
            .reshape(n, self.n, t, 2 * t - 1)[..., :t]
        )
        x = x + self.p[4](joined(((a + b) * 0.3).softmax(-1) @ v))
        y = self.c2(self.d(F.glu(self.c1(self.n2(x).transpose(1, 2)), 1)))
        x = x + y.transpose(1, 2)
        return x + 0.5 * self.f[1](x)


class Latents(nn.Module):
    """Perceiver: learned queries look at the input through one head, then at themselves."""

    def __init__(self, c: int = 32):
        super().__init__()
        self.z, self.n1, self.n2 = (
            nn.Parameter(torch.randn(6, c)),
            nn.LayerNorm(c),
            nn.LayerNorm(24),
        )
        self.q, self.k, self.v, self.o = (
            nn.Linear(c, 24),
            nn.Linear(24, 24),
            nn.Linear(24, 40),
            nn.Linear(40, c),
        )
        self.mlp = nn.Sequential(
            nn.LayerNorm(c), nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c)
        )
        self.layers, self.head = nn.Sequential(Attended(c), Attended(c)), nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        z, y = self.z.expand(len(x), -1, -1), self.n2(x)
        z = z + self.o(
            (self.q(self.n1(z)) @ self.k(y).transpose(1, 2) * 0.2).softmax(-1) @ self.v(y)
        )
        return self.head(self.layers(z + self.mlp(z)).mean(1))


class Linear(nn.Module):
    """Attention without softmax over tokens: positive features of keys times values first."""

    def __init__(self, c: int = 32, n: int = 4):
        super().__init__()
        self.n, self.qkv, self.o = n, nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.mlp, self.head = (
            nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c)),
            nn.Linear(c, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(t, self.n) for t in self.qkv(x).chunk(3, -1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        y = q @ (k.transpose(-2, -1) @ v) / (q * k.sum(2, keepdim=True)).sum(-1, keepdim=True)
        x = x + self.o(joined(y))
        return self.head((x + self.mlp(x)).mean(1))


class Projected(nn.Module):
    """Linformer: keys and values of all tokens projected to a few."""

    def __init__(self, c: int = 32, n: int = 4, t: int = 16):
        super().__init__()
        self.n, self.e = n, nn.Parameter(torch.randn(8, t))
        self.p = nn.ModuleList(nn.Linear(c, c) for _ in range(4))
        self.mlp, self.head = (
            nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c)),
            nn.Linear(c, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            heads(self.p[0](x), self.n),
            heads(self.e @ self.p[1](x), self.n),
            heads(self.e @ self.p[2](x), self.n),
        )
        x = x + self.p[3](joined((q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v))
        return self.head(x + self.mlp(x))


TABLE: Table = {
    "groups_of_keys": (lambda: Decoder(2), (torch.randint(0, 40, (2, 16)),)),
    "one_group_of_keys": (lambda: Decoder(1), (torch.randint(0, 40, (2, 16)),)),
    "normed_heads": (lambda: Decoder(4, normed=True), (torch.randint(0, 40, (2, 16)),)),
    "latent_keys": (Latent, floats(2, 16, 32)),
    "positional": (Positional, floats(2, 1000)),
    "positional_three": (lambda: Positional(convs=3), floats(2, 1000)),
    "gated_positions": (lambda: Positional(gated=True), floats(2, 1000)),
    "grouped": (Grouped, floats(2, 48, 16)),
    "one_head_a_group": (lambda: Grouped(48, 4, 4), floats(2, 48, 16)),
    "relative": (Relative, floats(2, 12, 32)),
    "latents": (Latents, floats(2, 16, 24)),
    "linear_attention": (Linear, floats(2, 16, 32)),
    "projected_keys": (Projected, floats(2, 16, 32)),
}
