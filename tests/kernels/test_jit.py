"""Kernels compile, and keep their machine code on disk, wherever the package was imported from."""

from __future__ import annotations

import ast
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
select = topk._select_rows
hits = sum(select.stats.cache_hits.values())
print(indices.tolist(), select.stats.cache_path, select.targetoptions["nogil"], hits, sep="|")
"""


def run(folder: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def copy_package(archive: zipfile.ZipFile, more: str = "") -> None:
    """Copy what the kernel needs; `more` is added at the end of its source."""
    for name in ("__init__.py", "runtime.py", "kernels/__init__.py", "kernels/jit.py"):
        archive.write(PACKAGE / name, f"sparkcf/{name}")
    archive.writestr("sparkcf/kernels/topk.py", (PACKAGE / "kernels" / "topk.py").read_text() + more)


def test_kernel_of_a_zip_is_compiled_once_wherever_the_zip_lies_and_again_when_its_source_changes(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    for number, (more, hits) in enumerate((("", 0), ("", 1), ("# changed\n", 0))):
        path = tmp_path / str(number) / "package.zip"
        path.parent.mkdir()
        with zipfile.ZipFile(path, "w") as archive:
            copy_package(archive, more)
        result, folder, no_gil, found = run(tmp_path, "-c", CALL_A_KERNEL, str(path), NUMBA_CACHE_DIR=str(cache)).split(
            "|"
        )
        assert (result, no_gil, found) == ("[[1, 2]]", "True", str(hits))
        assert Path(folder).parent == cache


def test_kernel_runs_from_a_zip_where_no_cache_folder_can_be_written(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        copy_package(archive)
    unwritable = {"NUMBA_CACHE_DIR": "", "HOME": os.devnull, "XDG_CACHE_HOME": os.devnull}
    assert run(tmp_path, "-c", CALL_A_KERNEL, str(tmp_path / "package.zip"), **unwritable) == "[[1, 2]]|None|True|0"


def test_kernel_is_cached_beside_a_real_source_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        copy_package(archive)
    with zipfile.ZipFile(tmp_path / "package.zip") as archive:
        archive.extractall(tmp_path / "real")
    out = run(tmp_path, "-c", CALL_A_KERNEL, str(tmp_path / "real"), NUMBA_CACHE_DIR="")
    cache = tmp_path / "real" / "sparkcf" / "kernels" / "__pycache__"
    assert out == f"[[1, 2]]|{cache}|True|0"
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


def called_elsewhere(source: str, kernels: set[str]) -> list[str]:
    """Names of `kernels` that kernels of the source call, but that it imports."""
    tree = ast.parse(source)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    compiled = [node for node in tree.body if isinstance(node, ast.FunctionDef) and is_kernel(node)]
    names = {node.id for function in compiled for node in ast.walk(function) if isinstance(node, ast.Name)}
    return sorted(names & imported & kernels)


def is_kernel(function: ast.FunctionDef) -> bool:
    return any("kernel" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_kernels_call_compiled_functions_of_their_own_file_only() -> None:
    sources = {file.name: file.read_text() for file in sorted((PACKAGE / "kernels").glob("*.py"))}
    functions = [f for text in sources.values() for f in ast.parse(text).body if isinstance(f, ast.FunctionDef)]
    kernels = {function.name for function in functions if is_kernel(function)}
    assert len(kernels) > 30
    assert {name: found for name, text in sources.items() if (found := called_elsewhere(text, kernels))} == {}
    planted = "from sparkcf.kernels.a import helper\n@kernel()\ndef f(x):\n    return helper(x)"
    assert called_elsewhere(planted, {"helper"}) == ["helper"]
