"""Peer libraries in an environment of their own, and a process there that answers commands.

    python -m tests.bench.peers          builds the environment in .bench-peers/

Peers must not bend this project's pins, nor this project theirs; a process that stays lets both take turns.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tests.bench.synthetic import Interactions

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".bench-peers"
PINS = ("implicit==0.7.2", "numpy==1.26.4", "scipy==1.14.1", "scikit-learn==1.5.2", "threadpoolctl==3.5.0")
SKIPPED = "peer skipped"  # in the tables, where a quick run found no environment


def installed() -> bool:
    """Whether the environment is there, with these pins."""
    stamp = ENVIRONMENT / "pins.txt"
    return stamp.is_file() and stamp.read_text().split() == list(PINS)


def install() -> None:
    """Build the environment, by this interpreter, unless it is there."""
    if installed():
        return
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    venv.create(ENVIRONMENT, with_pip=True)
    subprocess.run([_python(), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PINS], check=True)
    (ENVIRONMENT / "pins.txt").write_text("\n".join(PINS))


def _python() -> str:
    return str(ENVIRONMENT / "bin" / "python")


class Peer:
    """A process of the peers' environment (peer.py): JSON lines for commands and answers, .npy files for arrays."""

    def __enter__(self) -> Peer:
        install()
        self._folder = tempfile.TemporaryDirectory(prefix="bench-peer-")
        # implicit runs over rows in threads of its own; BLAS threads beside them only get in its way.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [_python(), str(Path(__file__).with_name("peer.py")), self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._folder.cleanup()

    def ask(self, do: str, arrays: dict[str, np.ndarray] | None = None, **fields: Any) -> dict[str, Any]:
        """Send one command with its arrays, wait for its answer.

        Raises
        ------
        RuntimeError
            The peer failed; with its traceback.
        """
        for name, array in (arrays or {}).items():
            np.save(Path(self._folder.name, f"{name}.npy"), array, allow_pickle=False)
        print(json.dumps({"do": do} | fields), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        answer = json.loads(line) if line else {"error": f"the process ended in {do!r}"}
        if "error" in answer:
            raise RuntimeError(f"peer: {answer['error']}")
        return answer

    def pairs(self, data: Interactions) -> None:
        """Hand over the matrix of all later commands."""
        arrays = {"users": data.users, "items": data.items, "values": data.values}
        self.ask("pairs", arrays, n_users=data.n_users, n_items=data.n_items)

    def als(self, user: np.ndarray, item: np.ndarray, **model: Any) -> None:
        """A model of implicit with these factors: alpha, regularization, threads, cg_steps (0: Cholesky)."""
        self.ask("als", {"user_factors": user, "item_factors": item}, rank=user.shape[1], **model)

    def array(self, name: str) -> np.ndarray:
        """An array that the last answer left."""
        return np.load(Path(self._folder.name, f"{name}.npy"), allow_pickle=False)


def optional(quick: bool) -> AbstractContextManager[Peer | None]:
    """A peer; in a quick run only where its environment is there already, else None."""
    return Peer() if installed() or not quick else nullcontext()


if __name__ == "__main__":
    install()
    print(f"{sys.version.split()[0]} with {', '.join(PINS)} in {ENVIRONMENT}")
