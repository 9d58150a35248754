"""Signals, series, points, tables for bench/prune_structures.py: dilated, recurrent, mixed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from prune_convolutions import Table, floats
from prune_sequences import heads, joined
from torch import Tensor, nn


class Causal(nn.Module):
    """WaveNet: dilated causal convolutions, gated, chomped, their skips summed."""

    def __init__(self, c: int = 16, layers: int = 4):
        super().__init__()
        self.i = nn.Conv1d(1, c, 1)
        norm = nn.utils.parametrizations.weight_norm
        self.f = nn.ModuleList(
            norm(nn.Conv1d(c, 2 * c, 2, padding=2**k, dilation=2**k)) for k in range(layers)
        )
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
        self.a = nn.ModuleList(
            nn.Conv1d(i, o, 3, padding=2 * 2**k, dilation=2**k) for k, (i, o) in enumerate(pairs)
        )
        self.b = nn.ModuleList(
            nn.Conv1d(o, o, 3, padding=2 * 2**k, dilation=2**k) for k, (_, o) in enumerate(pairs)
        )
        self.s = nn.ModuleList(nn.Conv1d(i, o, 1) if i != o else nn.Identity() for i, o in pairs)
        self.head = nn.Linear(widths[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        for k, (a, b, s) in enumerate(zip(self.a, self.b, self.s, strict=True)):
            y = F.relu(a(x)[..., : -2 * 2**k])
            x = F.relu(F.relu(b(y)[..., : -2 * 2**k]) + s(x))
        return self.head(x[..., -1])


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
        self.f = nn.ModuleList(
            nn.Sequential(
                nn.Linear(t, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU()
            )
            for _ in range(3)
        )
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
            nn.ModuleList(
                nn.ModuleList(nn.Conv1d(w, w, k, padding=d * (k // 2), dilation=d) for d in (1, 3))
                for k in (3, 7)
            )
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
        self.rnn = nn.ModuleList(
            nn.LSTM(c, h, batch_first=True, bidirectional=True) for _ in range(2)
        )
        self.p, self.n = (
            nn.ModuleList(nn.Linear(2 * h, c) for _ in range(2)),
            nn.ModuleList(nn.GroupNorm(1, c) for _ in range(2)),
        )
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
    """ECAPA-TDNN: dilated Res2 blocks, all of them joined, attentive statistics."""

    def __init__(self, c: int = 32, scale: int = 4):
        super().__init__()
        w = c // scale
        self.i, self.w = (
            nn.Sequential(nn.Conv1d(20, c, 5, padding=2), nn.ReLU(), nn.BatchNorm1d(c)),
            w,
        )
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "a": nn.Sequential(nn.Conv1d(c, c, 1), nn.ReLU(), nn.BatchNorm1d(c)),
                    "p": nn.ModuleList(
                        nn.Sequential(
                            nn.Conv1d(w, w, 3, padding=d, dilation=d), nn.ReLU(), nn.BatchNorm1d(w)
                        )
                        for _ in range(scale - 1)
                    ),
                    "z": nn.Sequential(nn.Conv1d(c, c, 1), nn.ReLU(), nn.BatchNorm1d(c)),
                    "s": nn.Sequential(
                        nn.Conv1d(c, 8, 1), nn.ReLU(), nn.Conv1d(8, c, 1), nn.Sigmoid()
                    ),
                }
            )
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
        self.r, self.a, self.b = (
            nn.Linear(c, e),
            nn.Parameter(torch.randn(e, c, 2 * c)),
            nn.Parameter(torch.randn(e, 2 * c, c)),
        )
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
        self.low, self.c = (
            nn.Sequential(nn.Linear(6, d), nn.ReLU(), nn.Linear(d, c), nn.ReLU()),
            nn.Linear(4 * c, 4 * c),
        )
        self.top = nn.Sequential(
            nn.Linear(4 * c + 6, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 1)
        )
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
        self.m, self.f = (
            nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 9)),
            nn.Sequential(nn.Conv1d(3, 32, 1), nn.ReLU()),
        )
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
        p = (
            F.leaky_relu(a[..., None] + b[..., None, :], 0.2) + (edges[:, None] - 1) * 1e4
        ).softmax(-1)
        return self.o(F.elu(joined(p @ y)))


TABLE: Table = {
    "causal": (Causal, floats(2, 1, 40)),
    "residues": (Residues, floats(2, 4, 40)),
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
