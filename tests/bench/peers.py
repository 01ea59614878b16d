"""Peer libraries in environments of their own, and a process there that answers commands.

    python -m tests.bench.peers          builds the environment in .bench-peers/
    python -m tests.bench.peers fm       builds the environment in .bench-peers-fm/
    python -m tests.bench.peers torch    builds the environment in .bench-peers-torch/ (some 5 GB, minutes)
    python -m tests.bench.peers cornac   builds the environment in .bench-peers-cornac/ (some 5 GB, minutes)
    python -m tests.bench.peers night    builds the environment in .bench-peers-night/

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
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tests.bench.synthetic import Interactions

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = "peer skipped"  # in the tables, where a quick run found no environment


@dataclass(frozen=True)
class Environment:
    """Pinned packages in a folder, and the script beside this file that serves them."""

    folder: Path
    pins: tuple[str, ...]
    script: str

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def installed(self) -> bool:
        """Whether it is there, with these pins."""
        stamp = self.folder / "pins.txt"
        return stamp.is_file() and stamp.read_text().split() == list(self.pins)

    def install(self) -> None:
        """Build it, by this interpreter, unless it is there."""
        if self.installed():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        venv.create(self.folder, with_pip=True)
        subprocess.run(
            [self.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *self.pins], check=True
        )
        (self.folder / "pins.txt").write_text("\n".join(self.pins))


FACTORS = Environment(
    ROOT / ".bench-peers",
    ("implicit==0.7.2", "numpy==1.26.4", "scipy==1.14.1", "scikit-learn==1.5.2", "threadpoolctl==3.5.0"),
    "peer.py",
)
# torch as in this project, so that both train on the same kernels.
NEURAL = Environment(
    ROOT / ".bench-peers-torch",
    (
        "recbole==1.2.1",
        "torch==2.13.0",
        "numpy==1.26.4",
        "scipy==1.14.1",
        "pandas==2.2.3",
        "scikit-learn==1.5.2",
    ),
    "neural_peer.py",
)
# myFM wants another numpy than implicit.
MACHINES = Environment(
    ROOT / ".bench-peers-fm", ("myfm==0.4.0", "numpy==2.2.6", "pandas==2.3.3", "scipy==1.14.1"), "fm_peer.py"
)
# cornac wants another numpy than RecBole. torch as in this project again.
CORNAC = Environment(
    ROOT / ".bench-peers-cornac",
    ("cornac==3.0.1", "torch==2.13.0", "numpy==2.2.6", "scipy==1.14.1"),
    "cornac_peer.py",
)
# The script of a night is no server: night.py runs it from beginning to end.
SCRIPT = Environment(
    ROOT / ".bench-peers-night",
    ("duckdb==1.1.3", "implicit==0.7.2", "numpy==1.26.4", "scipy==1.14.1", "pyarrow==14.0.2"),
    "night_script.py",
)
ENVIRONMENTS = {"factors": FACTORS, "fm": MACHINES, "torch": NEURAL, "cornac": CORNAC, "night": SCRIPT}
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # indptr, indices, values


class Process:
    """A process of an environment: JSON lines for commands and answers, .npy files for arrays."""

    environment: Environment

    def __enter__(self) -> Self:
        self.environment.install()
        self._folder = tempfile.TemporaryDirectory(prefix="bench-peer-")
        # implicit runs over rows in threads of its own; BLAS threads beside them only get in its way.
        # torch has an OpenMP and MKL of its own, which this does not reach.
        variables = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [self.environment.python, str(Path(__file__).with_name(self.environment.script)), self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
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

    def array(self, name: str) -> np.ndarray:
        """An array that the last answer left."""
        return np.load(Path(self._folder.name, f"{name}.npy"), allow_pickle=False)


class Peer(Process):
    """implicit and scikit-learn (peer.py)."""

    environment = FACTORS

    def pairs(self, data: Interactions) -> None:
        """Hand over the matrix of all later commands."""
        arrays = {"users": data.users, "items": data.items, "values": data.values}
        self.ask("pairs", arrays, n_users=data.n_users, n_items=data.n_items)

    def als(self, user: np.ndarray, item: np.ndarray, **model: Any) -> None:
        """A model of implicit with these factors: alpha, regularization, threads, cg_steps (0: Cholesky)."""
        self.ask("als", {"user_factors": user, "item_factors": item}, rank=user.shape[1], **model)


class MachinePeer(Process):
    """myFM (fm_peer.py)."""

    environment = MACHINES


class TrainedPeer(Process):
    """A process with a model that trains by epochs."""

    def epoch(self) -> dict[str, float]:
        """One epoch of training: seconds, cpu_seconds, and losses (see the environment's script)."""
        return self.ask("epoch")

    def lists(self, seen: Rows, k: int = 100) -> np.ndarray:
        """Lists of the users of these rows, by the model as it is now: int32 (n, k), best first, padded with -1.

        Items of a user's row are not listed. The training goes on as if nobody had asked.
        """
        self.ask("lists", {"seen_ptr": seen[0], "seen_items": seen[1]}, k=k)
        return self.array("ranked")


class NeuralPeer(TrainedPeer):
    """RecBole's autoencoders (neural_peer.py). They fold in: `lists` takes the rows of any users."""

    environment = NEURAL

    def model(self, kind: str, data: Interactions, **settings: Any) -> dict[str, Any]:
        """A model on these pairs, "multvae", "multdae" or "macridvae"; settings, answer: see neural_peer.py."""
        arrays = {"users": data.users.astype(np.int32), "items": data.items.astype(np.int32)}
        return self.ask("model", arrays, kind=kind, n_users=data.n_users, n_items=data.n_items, **settings)


class CornacPeer(TrainedPeer):
    """cornac's BiVAECF (cornac_peer.py). `lists` takes one row for each user of the training, to leave out."""

    environment = CORNAC

    def model(self, data: Interactions, **settings: Any) -> dict[str, Any]:
        """A model on these pairs; settings, answer: see cornac_peer.py."""
        arrays = {"users": data.users.astype(np.int32), "items": data.items.astype(np.int32)}
        return self.ask("model", arrays, n_users=data.n_users, n_items=data.n_items, **settings)


def optional(quick: bool) -> AbstractContextManager[Peer | None]:
    """A peer; in a quick run only where its environment is there already, else None."""
    return Peer() if FACTORS.installed() or not quick else nullcontext()


def optional_machine(quick: bool) -> AbstractContextManager[MachinePeer | None]:
    """myFM; in a quick run only where its environment is there already, else None."""
    return MachinePeer() if MACHINES.installed() or not quick else nullcontext()


def optional_neural(quick: bool) -> AbstractContextManager[NeuralPeer | None]:
    """A neural peer; in a quick run only where its environment is there already, else None."""
    return NeuralPeer() if NEURAL.installed() or not quick else nullcontext()


def optional_cornac(quick: bool) -> AbstractContextManager[CornacPeer | None]:
    """cornac; in a quick run only where its environment is there already, else None."""
    return CornacPeer() if CORNAC.installed() or not quick else nullcontext()


if __name__ == "__main__":
    chosen = ENVIRONMENTS[sys.argv[1] if len(sys.argv) > 1 else "factors"]
    chosen.install()
    print(f"{sys.version.split()[0]} with {', '.join(chosen.pins)} in {chosen.folder}")
