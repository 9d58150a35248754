"""Architectures for bench/prune_units.py, written to be unlike each other: images.

    python bench/prune_structures.py --out DIR [NAME ...]

One block or two of each kind, random weights, exported by torch's tracer (`dynamo=False`). What
matters is how channels, heads and groups are tied together, not what the network could learn.
Sequences, signals and tables are in prune_sequences.py. Needs the torch extra.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE = (2, 3, 32, 32)
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
        self.h, self.n1, self.qkv, self.o = heads, nn.LayerNorm(c), nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.t = nn.Parameter(torch.ones(heads, 1, 1))
        self.local = nn.Sequential(nn.Conv2d(c, c, 3, padding=1, groups=c), nn.GELU(), nn.BatchNorm2d(c))
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
        self.register_buffer("index", (at[:, None, :, None] * size + at[None, :, None]).reshape(size * size // 4, -1))
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
        self.mlp = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))

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
        self.convs = nn.ModuleList(nn.Conv2d(self.w, self.w, 3, padding=1, groups=self.w) for _ in range(scale - 1))
        self.x, self.norm = CrossCovariance(c), nn.GroupNorm(1, c)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.w, 1)
        done = [self.convs[0](parts[0])]
        for k, f in enumerate(self.convs[1:], 1):
            done.append(f(done[-1] + parts[k]))
        return self.x(self.norm(x + torch.cat([*done, parts[-1]], 1)))


class Denoiser(nn.Module):
    """A diffusion U-Net: group norms, a time embedding, attention, skips."""

    def __init__(self, c: int = 32):
        super().__init__()
        self.t = nn.Sequential(nn.Linear(16, 4 * c), nn.SiLU(), nn.Linear(4 * c, 4 * c))
        self.i, self.down, self.up = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, 2 * c, 3, 2, 1), nn.ConvTranspose2d(2 * c, c, 2, 2)
        self.res = nn.ModuleList(
            nn.ModuleDict({
                "n1": nn.GroupNorm(8, i), "c1": nn.Conv2d(i, o, 3, padding=1), "t": nn.Linear(4 * c, 2 * o),
                "n2": nn.GroupNorm(8, o), "c2": nn.Conv2d(o, o, 3, padding=1), "s": nn.Conv2d(i, o, 1),
            })
            for i, o in ((c, c), (2 * c, 2 * c), (2 * c, c))
        )
        self.an, self.qkv, self.p = nn.GroupNorm(8, 2 * c), nn.Conv1d(2 * c, 6 * c, 1), nn.Conv1d(2 * c, 2 * c, 1)
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


def images(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(*(shape or IMAGE)),)


TABLE: Table = {
    "shuffle_v1": (lambda: Classifier(48, ShuffleUnit(48, 60, 3), ShuffleUnit(48, 60, 3)), images()),
    "shuffle_v2": (lambda: Classifier(32, ShuffleSplit(32), ShuffleSplit(32)), images()),
    "res2": (lambda: Classifier(32, Res2(32), Res2(32)), images()),
    "res2_squeezed": (lambda: Classifier(32, Res2(32, squeeze=True), Res2(32, 8)), images()),
    "split_attention": (lambda: Classifier(32, SplitAttention(32)), images()),
    "selective_kernels": (lambda: Classifier(32, SelectiveKernels(32)), images()),
    "cross_stage": (lambda: Classifier(32, CrossStage(32)), images()),
    "inverted": (lambda: Classifier(16, Inverted(16), Inverted(16)), images()),
    "windows_and_grid": (lambda: Classifier(32, Windows(32)), images()),
    "cross_covariance": (lambda: Classifier(32, CrossCovariance(32)), images()),
    "strided_attention": (lambda: Classifier(32, Strided(32, 48), out=48), images()),
    "convolved_queries": (lambda: Classifier(32, ConvolvedQueries(32)), images()),
    "split_depthwise": (lambda: Classifier(36, SplitDepthwise(36)), images()),
    "denoiser": (Denoiser, (torch.randn(2, 3, 16, 16), torch.randn(2, 16))),
    "detection_tokens": (Detection, images()),
}  # fmt: skip


def lively(module: nn.Module) -> nn.Module:
    """Random weights of ordinary sizes, and statistics that are not zero and one."""
    for m in module.modules():
        for name, p in m.named_parameters(recurse=False):
            if p.ndim >= 2:
                nn.init.normal_(p, 0, max(1, p[0].numel()) ** -0.5)
            else:
                nn.init.uniform_(p, *((0.5, 1.5) if name == "weight" else (-0.2, 0.2)))
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.5, 1.5)
    return module.eval()


def main(table: Table, about: str) -> None:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    for name in args.names or table:
        torch.manual_seed(0)
        make, feeds = table[name]
        path = str(args.out / f"{name}.onnx")
        with torch.no_grad():
            torch.onnx.export(lively(make()), feeds, path, dynamo=False, opset_version=17)


if __name__ == "__main__":
    main(TABLE, __doc__.split("\n")[0])
