"""Architectures for bench/prune_units.py, written to be unlike each other: sequences and signals.

    python bench/prune_sequences.py --out DIR [NAME ...]

As prune_structures.py, which has those of images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from prune_structures import Attended, Table, main
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


class Decoder(nn.Module):
    """A decoder with groups of keys and values, biases, rotary positions, norms of heads."""

    def __init__(self, groups: int, c: int = 32, n: int = 8, size: int = 8, normed: bool = False):
        super().__init__()
        self.e, self.n, self.g = nn.Embedding(40, c), n, groups
        self.layers = nn.ModuleList(
            nn.ModuleDict({
                "a": Norm(c), "q": nn.Linear(c, n * size), "k": nn.Linear(c, groups * size),
                "v": nn.Linear(c, groups * size), "o": nn.Linear(n * size, c), "b": Norm(c),
                "gate": nn.Linear(c, 2 * c), "up": nn.Linear(c, 2 * c), "down": nn.Linear(2 * c, c),
                "qn": Norm(size) if normed else nn.Identity(), "kn": Norm(size) if normed else nn.Identity(),
            })
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
                t[:, :, None].expand(-1, -1, r, -1, -1).reshape(len(t), self.n, 16, -1) for t in (k, v)
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


class Causal(nn.Module):
    """WaveNet: dilated causal convolutions, gated, chomped, their skips summed."""

    def __init__(self, c: int = 16, layers: int = 4):
        super().__init__()
        self.i = nn.Conv1d(1, c, 1)
        norm = nn.utils.parametrizations.weight_norm
        self.f = nn.ModuleList(norm(nn.Conv1d(c, 2 * c, 2, padding=2**k, dilation=2**k)) for k in range(layers))
        self.r = nn.ModuleList(nn.Conv1d(c, c, 1) for _ in range(layers))
        self.s = nn.ModuleList(nn.Conv1d(c, 2 * c, 1) for _ in range(layers))
        self.o = nn.Sequential(nn.ReLU(), nn.Conv1d(2 * c, c, 1), nn.ReLU(), nn.Conv1d(c, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.i(x), 0
        for k, (f, r, s) in enumerate(zip(self.f, self.r, self.s, strict=True)):
            a, b = f(x)[..., : -(2**k)].chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            total, x = total + s(y), x + r(y)
        return self.o(total)


class Residues(nn.Module):
    """TCN: two chomped convolutions a block, with a shortcut of its own where widths differ."""

    def __init__(self, widths: tuple[int, ...] = (16, 24, 24)):
        super().__init__()
        pairs = list(zip((4, *widths), widths, strict=False))
        self.a = nn.ModuleList(nn.Conv1d(i, o, 3, padding=2 * 2**k, dilation=2**k) for k, (i, o) in enumerate(pairs))
        self.b = nn.ModuleList(nn.Conv1d(o, o, 3, padding=2 * 2**k, dilation=2**k) for k, (_, o) in enumerate(pairs))
        self.s = nn.ModuleList(nn.Conv1d(i, o, 1) if i != o else nn.Identity() for i, o in pairs)
        self.head = nn.Linear(widths[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        for k, (a, b, s) in enumerate(zip(self.a, self.b, self.s, strict=True)):
            y = F.relu(a(x)[..., : -2 * 2**k])
            x = F.relu(F.relu(b(y)[..., : -2 * 2**k]) + s(x))
        return self.head(x[..., -1])


class Positional(nn.Module):
    """wav2vec 2.0: a convolutional front, grouped positional convolutions, a transformer."""

    def __init__(self, c: int = 32, convs: int = 1, gated: bool = False):
        super().__init__()
        self.front = nn.ModuleList(nn.Conv1d(i, c, k, s) for i, k, s in ((1, 10, 5), (c, 3, 2), (c, 3, 2)))
        self.n, self.p = nn.ModuleList(nn.GroupNorm(c, c) for _ in self.front), nn.Linear(c, c)
        norm = nn.utils.parametrizations.weight_norm
        self.pos = nn.ModuleList(norm(nn.Conv1d(c, c, 9, padding=4, groups=4), dim=2) for _ in range(convs))
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
        n, t, c = x.shape
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
        self.o, self.a, self.b = nn.Conv1d(c, c, 1), nn.Conv1d(c, 4 * c, 1, groups=groups), nn.Conv1d(4 * c, c, 1, groups=groups)
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
        self.f = nn.ModuleList(nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.SiLU(), nn.Linear(4 * c, c)) for _ in range(2))
        self.n1, self.n2, self.c1, self.c2 = nn.LayerNorm(c), nn.LayerNorm(c), nn.Conv1d(c, 2 * c, 1), nn.Conv1d(c, c, 1)
        self.d = nn.Sequential(nn.Conv1d(c, c, 7, padding=3, groups=c), nn.BatchNorm1d(c), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        x = x + 0.5 * self.f[0](x)
        y = self.n1(x)
        q = self.p[0](y).view(n, t, self.n, -1)
        k, v, r = heads(self.p[1](y), self.n), heads(self.p[2](y), self.n), heads(self.p[3](self.at), self.n)
        a = (q + self.u).transpose(1, 2) @ k.transpose(-2, -1)
        b = (q + self.w).transpose(1, 2) @ r.transpose(-2, -1)
        b = F.pad(b, (1, 0)).view(n, self.n, 2 * t, t)[:, :, 1:].reshape(n, self.n, t, 2 * t - 1)[..., :t]
        x = x + self.p[4](joined(((a + b) * 0.3).softmax(-1) @ v))
        y = self.c2(self.d(F.glu(self.c1(self.n2(x).transpose(1, 2)), 1)))
        x = x + y.transpose(1, 2)
        return x + 0.5 * self.f[1](x)


class Latents(nn.Module):
    """Perceiver: learned queries look at the input through one head, then at themselves."""

    def __init__(self, c: int = 32):
        super().__init__()
        self.z, self.n1, self.n2 = nn.Parameter(torch.randn(6, c)), nn.LayerNorm(c), nn.LayerNorm(24)
        self.q, self.k, self.v, self.o = nn.Linear(c, 24), nn.Linear(24, 24), nn.Linear(24, 40), nn.Linear(40, c)
        self.mlp = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c))
        self.layers, self.head = nn.Sequential(Attended(c), Attended(c)), nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        z, y = self.z.expand(len(x), -1, -1), self.n2(x)
        z = z + self.o((self.q(self.n1(z)) @ self.k(y).transpose(1, 2) * 0.2).softmax(-1) @ self.v(y))
        return self.head(self.layers(z + self.mlp(z)).mean(1))


class Linear(nn.Module):
    """Attention without softmax over tokens: positive features of keys times values first."""

    def __init__(self, c: int = 32, n: int = 4):
        super().__init__()
        self.n, self.qkv, self.o = n, nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.mlp, self.head = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c)), nn.Linear(c, 5)

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
        self.mlp, self.head = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c)), nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = heads(self.p[0](x), self.n), heads(self.e @ self.p[1](x), self.n), heads(self.e @ self.p[2](x), self.n)
        x = x + self.p[3](joined((q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v))
        return self.head(x + self.mlp(x))


class SpatialGate(nn.Module):
    """gMLP: half of the features gate the other half through a layer over tokens."""

    def __init__(self, c: int = 32, t: int = 16):
        super().__init__()
        self.n, self.a, self.b = nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.Linear(2 * c, c)
        self.g, self.s, self.head = nn.LayerNorm(2 * c), nn.Conv1d(t, t, 1), nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.a(self.n(x))).chunk(2, -1)
        return self.head(x + self.b(u * self.s(self.g(v))))


class Stacks(nn.Module):
    """N-BEATS: blocks subtract what they explain and add to the forecast."""

    def __init__(self, t: int = 24, h: int = 32):
        super().__init__()
        self.f = nn.ModuleList(nn.Sequential(nn.Linear(t, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU()) for _ in range(3))
        self.back, self.fore = (nn.ModuleList(nn.Linear(h, o) for _ in range(3)) for o in (t, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = 0
        for f, back, fore in zip(self.f, self.back, self.fore, strict=True):
            h = f(x)
            x, y = x - back(h), y + fore(h)
        return y


class Vocoder(nn.Module):
    """HiFi-GAN: transposed convolutions, sums of dilated residual blocks."""

    def __init__(self, c: int = 32):
        super().__init__()
        self.i, self.o = nn.Conv1d(16, c, 7, padding=3), nn.Conv1d(c // 4, 1, 7, padding=3)
        self.up = nn.ModuleList(nn.ConvTranspose1d(c >> k, c >> k + 1, 4, 2, 1) for k in range(2))
        self.res = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(nn.Conv1d(w, w, k, padding=d * (k // 2), dilation=d) for d in (1, 3)) for k in (3, 7))
            for w in (c // 2, c // 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        for up, blocks in zip(self.up, self.res, strict=True):
            x, total = up(F.leaky_relu(x, 0.1)), 0
            for a, b in blocks:
                y = x + b(F.leaky_relu(a(F.leaky_relu(x, 0.1)), 0.1))
                total = total + y
            x = total / len(blocks)
        return torch.tanh(self.o(x))


class TwoPaths(nn.Module):
    """DPRNN: a long sequence folded into chunks, LSTMs along and across them, a mask."""

    def __init__(self, c: int = 24, h: int = 32, chunk: int = 8):
        super().__init__()
        self.k, self.e, self.d = chunk, nn.Conv1d(1, c, 4, 2), nn.ConvTranspose1d(c, 1, 4, 2)
        self.rnn = nn.ModuleList(nn.LSTM(c, h, batch_first=True, bidirectional=True) for _ in range(2))
        self.p, self.n = nn.ModuleList(nn.Linear(2 * h, c) for _ in range(2)), nn.ModuleList(nn.GroupNorm(1, c) for _ in range(2))
        self.m = nn.Conv1d(c, 2 * c, 1)

    def forward(self, x: Tensor) -> Tensor:
        w = self.e(x)
        n, c, t = w.shape
        y = w.view(n, c, t // self.k, self.k)
        for axis, (rnn, p, norm) in enumerate(zip(self.rnn, self.p, self.n, strict=True)):
            z = y.permute(0, 2, 3, 1) if axis == 0 else y.permute(0, 3, 2, 1)
            out = p(rnn(z.reshape(-1, z.shape[2], c))[0]).view(z.shape)
            out = out.permute(0, 3, 1, 2) if axis == 0 else out.permute(0, 3, 2, 1)
            y = y + norm(out)
        a, b = self.m(y.reshape(n, c, t)).chunk(2, 1)
        return self.d(torch.relu(a) * w), self.d(torch.relu(b) * w)


class Speaker(nn.Module):
    """ECAPA-TDNN: dilated Res2 blocks, squeeze and excite, all blocks joined, attentive statistics."""

    def __init__(self, c: int = 32, scale: int = 4):
        super().__init__()
        w = c // scale
        self.i, self.w = nn.Sequential(nn.Conv1d(20, c, 5, padding=2), nn.ReLU(), nn.BatchNorm1d(c)), w
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                "a": nn.Sequential(nn.Conv1d(c, c, 1), nn.ReLU(), nn.BatchNorm1d(c)),
                "p": nn.ModuleList(nn.Sequential(nn.Conv1d(w, w, 3, padding=d, dilation=d), nn.ReLU(), nn.BatchNorm1d(w)) for _ in range(scale - 1)),
                "z": nn.Sequential(nn.Conv1d(c, c, 1), nn.ReLU(), nn.BatchNorm1d(c)),
                "s": nn.Sequential(nn.Conv1d(c, 8, 1), nn.ReLU(), nn.Conv1d(8, c, 1), nn.Sigmoid()),
            })
            for d in (2, 3)
        )
        self.m, self.o = nn.Conv1d(3 * c, 2 * c, 1), nn.Linear(4 * c, 16)
        self.at = nn.Sequential(nn.Conv1d(6 * c, 16, 1), nn.Tanh(), nn.Conv1d(16, 2 * c, 1))

    def forward(self, x: Tensor) -> Tensor:
        outs = [self.i(x)]
        for b in self.blocks:
            first, *rest = b["a"](sum(outs)).split(self.w, 1)
            done, last = [first], first
            for k, (p, mine) in enumerate(zip(b["p"], rest, strict=True)):
                last = p(last + mine if k else mine)
                done.append(last)
            y = b["z"](torch.cat(done, 1))
            outs.append(y * b["s"](y.mean(2, keepdim=True)) + outs[-1])
        y = F.relu(self.m(torch.cat(outs, 1)))
        mean, std = y.mean(2, keepdim=True), y.var(2, keepdim=True).clamp(min=1e-4).sqrt()
        a = self.at(torch.cat([y, mean.expand_as(y), std.expand_as(y)], 1)).softmax(2)
        mean = (a * y).sum(2)
        std = ((a * y * y).sum(2) - mean**2).clamp(min=1e-4).sqrt()
        return self.o(torch.cat([mean, std], 1))


class Experts(nn.Module):
    """A dense mixture: the experts' matrices stacked in one, weighed by a softmax."""

    def __init__(self, c: int = 24, e: int = 4):
        super().__init__()
        self.r, self.a, self.b = nn.Linear(c, e), nn.Parameter(torch.randn(e, c, 2 * c)), nn.Parameter(torch.randn(e, 2 * c, c))
        self.head = nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(torch.einsum("btc,ech->bteh", x, self.a))
        y = torch.einsum("bteh,ehc->btec", y, self.b) * self.r(x).softmax(-1)[..., None]
        return self.head(x + y.sum(2))


class Crossed(nn.Module):
    """DCN and DLRM: embeddings of categories, crosses of features, pairwise products."""

    def __init__(self, c: int = 8, d: int = 32):
        super().__init__()
        self.e = nn.ModuleList(nn.Embedding(12, c) for _ in range(3))
        self.low, self.c = nn.Sequential(nn.Linear(6, d), nn.ReLU(), nn.Linear(d, c), nn.ReLU()), nn.Linear(4 * c, 4 * c)
        self.top = nn.Sequential(nn.Linear(4 * c + 6, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 1))
        self.register_buffer("i", torch.tensor([0, 0, 0, 1, 1, 2]))
        self.register_buffer("j", torch.tensor([1, 2, 3, 2, 3, 3]))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        t = torch.stack([self.low(x), *(e(ids[:, k]) for k, e in enumerate(self.e))], 1)
        flat = t.flatten(1)
        pairs = (t @ t.transpose(1, 2))[:, self.i, self.j]
        return self.top(torch.cat([flat + flat * self.c(flat), pairs], 1))


class Points(nn.Module):
    """PointNet: a layer per point, a transform learned of all points, a maximum over points."""

    def __init__(self):
        super().__init__()
        self.t = nn.Sequential(nn.Conv1d(3, 16, 1), nn.ReLU(), nn.Conv1d(16, 32, 1), nn.ReLU())
        self.m, self.f = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 9)), nn.Sequential(nn.Conv1d(3, 32, 1), nn.ReLU())
        self.g = nn.Sequential(nn.Conv1d(32, 48, 1), nn.ReLU(), nn.Conv1d(48, 64, 1))
        self.s = nn.Sequential(nn.Conv1d(96, 32, 1), nn.ReLU(), nn.Conv1d(32, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = (self.m(self.t(x).max(2).values).view(-1, 3, 3) + torch.eye(3)) @ x
        f = self.f(y)
        g = self.g(f).max(2, keepdim=True).values
        return self.s(torch.cat([f, g.expand(-1, -1, x.shape[2])], 1))


class Attentive(nn.Module):
    """GAT: scores of pairs as sums of two vectors per head, masked by the edges."""

    def __init__(self, c: int = 16, n: int = 4, h: int = 8):
        super().__init__()
        self.n, self.w, self.o = n, nn.Linear(c, n * h), nn.Linear(n * h, 5)
        self.a, self.b = (nn.Parameter(torch.randn(n, h)) for _ in range(2))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        y = heads(self.w(x), self.n)
        a, b = ((y * v[:, None]).sum(-1) for v in (self.a, self.b))
        p = (F.leaky_relu(a[..., None] + b[..., None, :], 0.2) + (edges[:, None] - 1) * 1e4).softmax(-1)
        return self.o(F.elu(joined(p @ y)))


def tokens() -> tuple[Tensor, ...]:
    return (torch.randint(0, 40, (2, 16)),)


def floats(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(*shape),)


TABLE: Table = {
    "groups_of_keys": (lambda: Decoder(2), tokens()),
    "one_group_of_keys": (lambda: Decoder(1), tokens()),
    "normed_heads": (lambda: Decoder(4, normed=True), tokens()),
    "latent_keys": (Latent, floats(2, 16, 32)),
    "causal": (Causal, floats(2, 1, 40)),
    "residues": (Residues, floats(2, 4, 40)),
    "positional": (Positional, floats(2, 1000)),
    "positional_three": (lambda: Positional(convs=3), floats(2, 1000)),
    "gated_positions": (lambda: Positional(gated=True), floats(2, 1000)),
    "grouped": (Grouped, floats(2, 48, 16)),
    "one_head_a_group": (lambda: Grouped(48, 4, 4), floats(2, 48, 16)),
    "relative": (Relative, floats(2, 12, 32)),
    "latents": (Latents, floats(2, 16, 24)),
    "linear_attention": (Linear, floats(2, 16, 32)),
    "projected_keys": (Projected, floats(2, 16, 32)),
    "spatial_gate": (SpatialGate, floats(2, 16, 32)),
    "stacks": (Stacks, floats(4, 24)),
    "vocoder": (Vocoder, floats(2, 16, 10)),
    "two_paths": (TwoPaths, floats(2, 1, 66)),
    "speaker": (Speaker, floats(2, 20, 30)),
    "experts": (Experts, floats(2, 16, 24)),
    "crossed": (Crossed, (torch.randn(4, 6), torch.randint(0, 12, (4, 3)))),
    "points": (Points, floats(2, 3, 40)),
    "attentive": (Attentive, (torch.randn(2, 10, 16), (torch.rand(2, 10, 10) > 0.5).float())),
}


if __name__ == "__main__":
    main(TABLE, __doc__.split("\n")[0])
