"""SymPy is loaded when a symbolic size is calculated with, not when graphopt starts."""

import subprocess
import sys

LOADED = "'sympy.core' in sys.modules"


def told(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


def test_sympy_is_not_run_by_a_start():
    code = f"import sys, graphopt.pass_, onnx_ir; print({LOADED})"
    assert told(code) == ["False"]


def test_symbolic_sizes_calculate_as_before():
    code = (
        "import sys, graphopt, onnx_ir as ir; n = ir.SymbolicDim('max(n, 3)') * 2;"
        f"print(n.evaluate({{'n': 1}}), n.evaluate({{'n': 4}}), {LOADED});"
        "import sympy; print(sympy.Max(2, 5))"
    )
    assert told(code) == ["6", "8", "True", "5"]


def test_what_was_imported_before_stays():
    code = "import sympy, graphopt, sys; print(sys.modules['sympy'] is sympy, sympy.Integer(7))"
    assert told(code) == ["True", "7"]
