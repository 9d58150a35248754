"""Convolutional networks for bench/prune_structures.py: shuffles, splits, groups, gates."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: By name what makes a model, and what it takes.
Table = dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]]


def conv(i: int, o: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> nn.Sequential:
    """A convolution, its batch norm, and a ReLU."""
    layers = [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


class Classifier(nn.Module):
    """A stem, blocks, and a linear layer on pooled features."""

    def __init__(self, width: int, *blocks: nn.Module, out: int | None = None, stem: int = 3):
        super().__init__()
        self.stem, self.blocks = conv(3, width, stem, 2), nn.Sequential(*blocks)
        self.head = nn.Linear(out or width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class ShuffleUnit(nn.Module):
    """ShuffleNet: grouped 1x1, shuffle, depthwise, grouped 1x1, with a shortcut."""

    def __init__(self, c: int, middle: int, groups: int):
        super().__init__()
        self.g = groups
        self.a, self.b = conv(c, middle, g=groups), conv(middle, middle, 3, g=middle, act=False)
        self.c = conv(middle, c, g=groups, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        n, c, h, w = y.shape
        y = y.view(n, self.g, c // self.g, h, w).transpose(1, 2).reshape(n, c, h, w)
        return F.relu(x + self.c(self.b(y)))


class ShuffleSplit(nn.Module):
    """ShuffleNet v2: half of the channels go by, then both halves are shuffled."""

    def __init__(self, c: int):
        super().__init__()
        h = c // 2
        self.f = nn.Sequential(conv(h, h), conv(h, h, 3, g=h, act=False), conv(h, h))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        y = torch.cat([a, self.f(b)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Res2(nn.Module):
    """Res2Net: parts of a split, each worked on with what became of the part before it."""

    def __init__(self, c: int, scale: int = 4, squeeze: bool = False):
        super().__init__()
        w = c // scale
        self.w, self.a, self.z = w, conv(c, c), conv(c, c, act=False)
        self.parts = nn.ModuleList(conv(w, w, 3) for _ in range(scale - 1))
        self.se = nn.Sequential(nn.Conv2d(c, 8, 1), nn.ReLU(), nn.Conv2d(8, c, 1), nn.Sigmoid())
        self.squeeze = squeeze

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = torch.split(self.a(x), self.w, 1)
        done, last = [first], first
        for k, (part, mine) in enumerate(zip(self.parts, rest, strict=True)):
            last = part(last + mine if k else mine)
            done.append(last)
        y = self.z(torch.cat(done, 1))
        y = y * self.se(y.mean((2, 3), keepdim=True)) if self.squeeze else y
        return F.relu(x + y)


class SplitAttention(nn.Module):
    """ResNeSt: two grouped halves, weighed by a softmax over the two from their sum."""

    def __init__(self, c: int, groups: int = 2):
        super().__init__()
        self.g, self.a, self.b = groups, conv(c, c), conv(c, 2 * c, 3, g=2 * groups)
        self.f1, self.f2 = conv(c, 16, g=groups), nn.Conv2d(16, 2 * c, 1, groups=groups)
        self.z = conv(c, c, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        n, c, h, w = y.shape
        parts = y.view(n, 2, c // 2, h, w)
        s = self.f2(self.f1(parts.sum(1).mean((2, 3), keepdim=True)))
        s = s.view(n, self.g, 2, -1).transpose(1, 2).softmax(1).reshape(n, 2, c // 2, 1, 1)
        return F.relu(x + self.z((parts * s).sum(1)))


class SelectiveKernels(nn.Module):
    """SKNet: two kernel sizes, weighed channel by channel by a softmax over the two."""

    def __init__(self, c: int):
        super().__init__()
        self.a, self.b, self.f = conv(c, c, 3), conv(c, c, 5), conv(c, 8)
        self.w = nn.ModuleList(nn.Conv2d(8, c, 1) for _ in range(2))
        self.z = conv(c, c, act=False)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.a(x), self.b(x)], 1)
        s = self.f(both.sum(1).mean((2, 3), keepdim=True))
        weights = torch.stack([w(s) for w in self.w], 1).softmax(1)
        return F.relu(x + self.z((both * weights).sum(1)))


class CrossStage(nn.Module):
    """CSPNet: one branch through bottlenecks, one past them, concatenated."""

    def __init__(self, c: int):
        super().__init__()
        h = c // 2
        self.a, self.b, self.z = conv(c, h), conv(c, h), conv(c, c)
        self.m = nn.ModuleList(nn.Sequential(conv(h, h), conv(h, h, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        for m in self.m:
            y = y + m(y)
        return self.z(torch.cat([y, self.b(x)], 1))


class Inverted(nn.Module):
    """MBConv: expand, depthwise, squeeze and excite, project."""

    def __init__(self, c: int):
        super().__init__()
        m = 4 * c
        self.a, self.z = nn.Sequential(conv(c, m), conv(m, m, 3, g=m)), conv(m, c, act=False)
        self.se = nn.Sequential(nn.Conv2d(m, 8, 1), nn.SiLU(), nn.Conv2d(8, m, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return x + self.z(y * self.se(F.adaptive_avg_pool2d(y, 1)))


class Denoiser(nn.Module):
    """A diffusion U-Net: group norms, a time embedding, attention, skips."""

    def __init__(self, c: int = 32):
        super().__init__()
        self.t = nn.Sequential(nn.Linear(16, 4 * c), nn.SiLU(), nn.Linear(4 * c, 4 * c))
        self.i, self.down, self.up = (
            nn.Conv2d(3, c, 3, padding=1),
            nn.Conv2d(c, 2 * c, 3, 2, 1),
            nn.ConvTranspose2d(2 * c, c, 2, 2),
        )
        self.res = nn.ModuleList(
            nn.ModuleDict(
                {
                    "n1": nn.GroupNorm(8, i),
                    "c1": nn.Conv2d(i, o, 3, padding=1),
                    "t": nn.Linear(4 * c, 2 * o),
                    "n2": nn.GroupNorm(8, o),
                    "c2": nn.Conv2d(o, o, 3, padding=1),
                    "s": nn.Conv2d(i, o, 1),
                }
            )
            for i, o in ((c, c), (2 * c, 2 * c), (2 * c, c))
        )
        self.an, self.qkv, self.p = (
            nn.GroupNorm(8, 2 * c),
            nn.Conv1d(2 * c, 6 * c, 1),
            nn.Conv1d(2 * c, 2 * c, 1),
        )
        self.o = nn.Conv2d(c, 3, 3, padding=1)

    def block(self, m: nn.ModuleDict, x: Tensor, t: Tensor) -> Tensor:
        h = m["c1"](F.silu(m["n1"](x)))
        scale, shift = m["t"](F.silu(t))[:, :, None, None].chunk(2, 1)
        return m["s"](x) + m["c2"](F.silu(m["n2"](h) * (1 + scale) + shift))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = self.t(t)
        a = self.block(self.res[0], self.i(x), t)
        b = self.block(self.res[1], self.down(a), t)
        n, c, h, w = b.shape
        q, k, v = self.qkv(self.an(b).view(n, c, -1)).reshape(n * 4, 3 * c // 4, -1).chunk(3, 1)
        y = torch.einsum("bts,bcs->bct", torch.einsum("bct,bcs->bts", q, k).softmax(-1), v)
        b = b + self.p(y.reshape(n, c, -1)).view(n, c, h, w)
        return self.o(self.block(self.res[2], torch.cat([self.up(b), a], 1), t))


def floats(*shape: int) -> tuple[Tensor, ...]:
    """One random input."""
    return (torch.randn(*shape),)


TABLE: Table = {
    "shuffle_v1": (
        lambda: Classifier(48, ShuffleUnit(48, 60, 3), ShuffleUnit(48, 60, 3)),
        floats(2, 3, 32, 32),
    ),
    "shuffle_v2": (
        lambda: Classifier(32, ShuffleSplit(32), ShuffleSplit(32)),
        floats(2, 3, 32, 32),
    ),
    "res2": (lambda: Classifier(32, Res2(32), Res2(32)), floats(2, 3, 32, 32)),
    "res2_squeezed": (
        lambda: Classifier(32, Res2(32, squeeze=True), Res2(32, 8)),
        floats(2, 3, 32, 32),
    ),
    "split_attention": (lambda: Classifier(32, SplitAttention(32)), floats(2, 3, 32, 32)),
    "selective_kernels": (lambda: Classifier(32, SelectiveKernels(32)), floats(2, 3, 32, 32)),
    "cross_stage": (lambda: Classifier(32, CrossStage(32)), floats(2, 3, 32, 32)),
    "inverted": (lambda: Classifier(16, Inverted(16), Inverted(16)), floats(2, 3, 32, 32)),
    "denoiser": (Denoiser, (torch.randn(2, 3, 16, 16), torch.randn(2, 16))),
}
