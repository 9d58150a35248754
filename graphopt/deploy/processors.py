"""Processors: how many this process may use and what they can, found at run time."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path

__all__ = ["extensions", "processor", "processors", "saturates", "threads_to_ask_for"]

#: What matters to neural networks, weakest first: our name, and the flags that mean it.
_X86 = (
    ("avx2", {"avx2", "fma"}),
    ("avx512", {"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    ("avx-vnni", {"avx_vnni"}),
    ("avx512-vnni", {"avx512_vnni"}),
    ("avx512-bf16", {"avx512_bf16"}),
    ("amx-int8", {"amx_tile", "amx_int8"}),
    ("amx-bf16", {"amx_tile", "amx_bf16"}),
)
_ARM = (
    ("neon", {"asimd"}),
    ("dotprod", {"asimddp"}),
    ("fp16", {"asimdhp"}),
    ("i8mm", {"i8mm"}),
    ("bf16", {"bf16"}),
    ("sve", {"sve"}),
)
#: The same flags by macOS's names for them.
_MAC = {
    "FEAT_DotProd": "asimddp",
    "FEAT_FP16": "asimdhp",
    "FEAT_I8MM": "i8mm",
    "FEAT_BF16": "bf16",
    "AdvSIMD": "asimd",
}


def processors() -> int:
    """Processors this process may use: its affinity, and a container's quota if that is less."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _quota(Path("/sys/fs/cgroup/cpu.max"))
    return max(1, min(count, math.ceil(quota))) if quota else count


def threads_to_ask_for() -> int:
    """0, which leaves the choice to the runtime, unless this process has only part of the machine.

    Runtimes count the machine's cores and know nothing of a container's quota.
    """
    count = processors()
    return 0 if count == os.cpu_count() else count


def _quota(file: Path) -> float | None:
    """Processors' worth of time in a control group's cpu.max ("150000 100000"); None: no limit."""
    if not file.is_file():
        return None
    allowed, _, period = file.read_text().strip().partition(" ")
    return None if allowed == "max" else int(allowed) / int(period or 100000)


@cache
def extensions() -> tuple[str, ...]:
    """The extensions this machine has, e.g. ("avx2", "avx512", "avx512-vnni")."""
    table = _ARM if platform.machine().lower() in ("arm64", "aarch64") else _X86
    flags = _flags()
    return tuple(name for name, needed in table if needed <= flags)


def saturates(isa: Collection[str]) -> bool:
    """Whether pairs of products of unsigned and signed 8 bits saturate in 16 (x86 without VNNI)."""
    return "avx2" in isa and not {"avx-vnni", "avx512-vnni"} & set(isa)


def parse_cpuinfo(text: str) -> set[str]:
    """The flags that every processor in the text of /proc/cpuinfo has."""
    lines = [line.partition(":") for line in text.splitlines()]
    each = [set(v.split()) for k, _, v in lines if k.strip() in ("flags", "Features")]
    return set.intersection(*each) if each else set()


def _flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        return parse_cpuinfo(cpuinfo.read_text())
    if sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, check=False)
        return parse_sysctl(asked.stdout)
    return {"avx2", "fma"}  # elsewhere: what every x86 machine that runs ONNX Runtime well has


def parse_sysctl(text: str) -> set[str]:
    """The flags in the output of macOS's `sysctl -a`."""
    flags: set[str] = set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.startswith("hw.optional.arm.") and value.strip() == "1":
            flags.add(_MAC.get(key.removeprefix("hw.optional.arm."), ""))
        if key in ("machdep.cpu.features", "machdep.cpu.leaf7_features"):
            flags.update(value.lower().split())
    return flags - {""}


@cache
def processor() -> str:
    """The processor's name, as the system gives it ("AMD EPYC 9R45"), or that of its kind."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        named = [v.strip() for k, _, v in lines if k.strip() == "model name"]
    else:
        named = [platform.processor()]
    return next((n for n in named if n), platform.machine())
