import os
from pathlib import Path

from graphopt.deploy import processors


def test_a_container_quota_bounds_the_processors(tmp_path: Path):
    file = tmp_path / "cpu.max"
    file.write_text("150000 100000\n")
    assert processors._quota(file) == 1.5
    file.write_text("max 100000\n")
    assert processors._quota(file) is None
    assert processors._quota(tmp_path / "none") is None


def test_this_machine_has_at_least_one_processor():
    assert processors.processors() >= 1


def test_the_runtime_chooses_threads_unless_it_would_count_too_many(monkeypatch):
    monkeypatch.setattr(processors, "processors", lambda: os.cpu_count())
    assert processors.threads_to_ask_for() == 0
    monkeypatch.setattr(processors, "processors", lambda: 1000)
    assert processors.threads_to_ask_for() == 1000


def test_flags_are_those_every_processor_has():
    text = "processor : 0\nflags\t: fma avx2 avx512f\n\nprocessor : 1\nflags\t: fma avx2\n"
    assert processors.parse_cpuinfo(text) == {"fma", "avx2"}


def test_arm_features_are_read():
    assert "asimddp" in processors.parse_cpuinfo("Features\t: fp asimd asimddp\n")


def test_mac_features_are_read():
    text = "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_BF16: 0\nkern.x: 1\n"
    assert processors.parse_sysctl(text) == {"asimddp"}
    assert "avx2" in processors.parse_sysctl("machdep.cpu.leaf7_features: SMEP AVX2\n")


def test_pairs_of_products_saturate_on_x86_without_vnni():
    assert processors.saturates(("avx2",))
    assert processors.saturates(("avx2", "avx512"))
    assert not processors.saturates(("avx2", "avx-vnni"))
    assert not processors.saturates(("avx2", "avx512", "avx512-vnni"))
    assert not processors.saturates(("neon", "dotprod"))
