from graphopt.backends import isa


def test_flags_are_those_every_processor_has():
    text = "processor : 0\nflags\t: fma avx2 avx512f\n\nprocessor : 1\nflags\t: fma avx2\n"
    assert isa.parse_cpuinfo(text) == {"fma", "avx2"}


def test_arm_features_are_read():
    assert "asimddp" in isa.parse_cpuinfo("Features\t: fp asimd asimddp\n")


def test_mac_features_are_read():
    text = "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_BF16: 0\nkern.x: 1\n"
    assert isa.parse_sysctl(text) == {"asimddp"}
    assert "avx2" in isa.parse_sysctl("machdep.cpu.leaf7_features: SMEP AVX2\n")
