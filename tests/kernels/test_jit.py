"""Kernels compile, and keep their machine code on disk, wherever the package was imported from."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sparkcf
from sparkcf.kernels.jit import kernel

PACKAGE = Path(sparkcf.__file__).parent
CALL_A_KERNEL = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from sparkcf.kernels import topk
assert topk.__file__.startswith(sys.argv[1]), topk.__file__
indices, _ = topk.select_top(np.array([[1, 5, 3]], dtype=np.float32), 2)
print(indices.tolist(), topk._select_rows.stats.cache_path, topk._select_rows.targetoptions["nogil"])
"""


def run(folder: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def copy_package(archive: zipfile.ZipFile) -> None:
    names = ["__init__.py", "runtime.py", "kernels/__init__.py", "kernels/jit.py", "kernels/topk.py"]
    for name in names:
        archive.write(PACKAGE / name, f"sparkcf/{name}")


def test_kernel_runs_from_a_zip_without_a_cache(tmp_path: Path) -> None:
    path = tmp_path / "package.zip"
    with zipfile.ZipFile(path, "w") as archive:
        copy_package(archive)
    assert run(tmp_path, "-c", CALL_A_KERNEL, str(path)) == "[[1, 2]] None True"


def test_kernel_is_cached_beside_a_real_source_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        copy_package(archive)
    with zipfile.ZipFile(tmp_path / "package.zip") as archive:
        archive.extractall(tmp_path / "real")
    out = run(tmp_path, "-c", CALL_A_KERNEL, str(tmp_path / "real"), NUMBA_CACHE_DIR="")
    cache = tmp_path / "real" / "sparkcf" / "kernels" / "__pycache__"
    assert out == f"[[1, 2]] {cache} True"
    assert list(cache.glob("topk._select_rows-*.nbi"))


def test_kernel_runs_where_no_cache_folder_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "from sparkcf.kernels.jit import kernel\n\n\n@kernel()\ndef double(x):\n    return 2 * x\n"
    )
    (tmp_path / "__pycache__").write_text("a file, so that no folder of this name can be made")
    unwritable = {"NUMBA_CACHE_DIR": "", "HOME": os.devnull, "XDG_CACHE_HOME": os.devnull}
    code = "import module; print(module.double(21), module.double.stats.cache_path)"
    assert run(tmp_path, "-c", code, PYTHONPATH=str(PACKAGE.parent), **unwritable) == "42 None"


def test_kernel_takes_options_of_njit() -> None:
    @kernel(fastmath=True, nogil=False, cache=False)
    def add(a: float, b: float) -> float:
        return a + b

    assert add(1.5, 2.0) == 3.5
    assert add.targetoptions["fastmath"] is True  # type: ignore[attr-defined]
    assert add.targetoptions["nogil"] is False  # type: ignore[attr-defined]


def test_kernel_does_not_hide_other_errors_of_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**options: object) -> None:
        raise RuntimeError("no LLVM")

    monkeypatch.setattr("numba.njit", broken)
    with pytest.raises(RuntimeError, match="no LLVM"):
        kernel()(lambda x: x)
