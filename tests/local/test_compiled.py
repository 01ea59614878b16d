"""Set-up compiles the kernels of a night, so that the first night finds them."""

from __future__ import annotations

import subprocess
import sys

COMPILED = """
from sparkcf.kernels import cg, csr, metrics, topk
from sparkcf.local.compiled import compile_kernels
kernels = [cg.solve_cg, csr._stable_order, topk._select_rows, metrics._measure_rows, metrics._fill_weights]
before = [len(kernel.signatures) for kernel in kernels]
compile_kernels()
print(before, all(kernel.signatures for kernel in kernels))
"""


def test_set_up_compiles_what_solves_ranks_measures_and_draws_bounds() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.stdout.strip() == "[0, 0, 0, 0, 0] True", done.stderr
