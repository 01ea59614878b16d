"""The neural peer's end: RecBole's own training, an epoch a command. See peers.py, and peer.py for the protocol.

RecBole's model, data loader and trainer are run as they are. Only the reading of files is left out: the data set is
made of the pairs in memory. What RecBole adds to the work itself, and any comparison must name:

- one user and one item of padding, id 0: n_users + 1 rows an epoch, n_items + 1 columns;
- every row of a batch is read padded to the longest history of all users;
- MultiVAE's noise has a standard deviation of 0.01, not 1;
- MultiDAE has a tanh after its latent layer;
- MacridVAE normalises a row and drops items from it before the row is masked by concept, not after; a draw of the
  Gumbel softmax is made in evaluation too, and multiplied by 0;
- biases take part in weight decay.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peer import best, serve
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.utils import get_dataloader
from recbole.sampler import Sampler
from recbole.utils import FeatureSource, FeatureType, get_model, get_trainer, init_seed

USER, ITEM = "user", "item"
MODELS = {"multvae": "MultiVAE", "multdae": "MultiDAE", "macridvae": "MacridVAE", "neumf": "NeuMF"}
MACRID = {"kfac": 10, "tau": 0.1, "std": 0.01, "nogb": False, "reg_weights": [0.0, 0.0]}
NEUMF = {"mf_embedding_size": 8, "mlp_embedding_size": 32, "negatives": 4}
ROWS = 500  # scored at a time


class Pairs(Dataset):
    """A data set of pairs in memory, all of it for training; ids as given, plus 1 for RecBole's padding."""

    def __init__(self, config: Config, users: np.ndarray, items: np.ndarray, n_users: int, n_items: int) -> None:
        self._columns = {USER: (users, n_users), ITEM: (items, n_items)}
        super().__init__(config)

    def _load_data(self, token: str, dataset_path: str) -> None:
        """Instead of files."""
        self.inter_feat = pd.DataFrame({name: ids.astype(np.int64) for name, (ids, _) in self._columns.items()})
        self.user_feat = self.item_feat = None
        self.file_size_list = [len(self.inter_feat)]
        for name in self._columns:
            self.field2source[name] = FeatureSource.INTERACTION
            self.field2type[name] = FeatureType.TOKEN
            self.field2seqlen[name] = 1

    def _remap_ID_all(self) -> None:
        """Instead of ids by first appearance, which would drop users and items of no pair."""
        for name, (ids, n) in self._columns.items():
            self.inter_feat[name] = ids.astype(np.int64) + 1
            self.field2id_token[name] = np.array(["[PAD]", *map(str, range(n))])


class Worker:
    """The commands are the public methods."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _read(self, name: str) -> np.ndarray:
        return np.load(self._folder / f"{name}.npy", allow_pickle=False)

    def model(
        self,
        kind: str,
        n_users: int,
        n_items: int,
        hidden: list[int] | None = None,
        latent: int = 200,
        dropout: float = 0.5,
        beta_cap: float = 0.2,
        anneal_steps: int = 20_000,
        batch: int = 500,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        threads: int = 1,
        seed: int = 1,
        **own: Any,
    ) -> dict[str, Any]:
        """A model of RecBole, its trainer and its data loader on the arrays users, items; `hidden` None: [600].

        RecBole's latent_dimension of MultiVAE counts means and variances together, `latent` the means only. The KL
        term's weight is min(beta_cap, updates / anneal_steps), or beta_cap throughout where MacridVAE's anneal_steps
        is 0. `own`: settings of one model. kfac, tau, std, nogb, reg_weights of MacridVAE, by default as RecBole has
        them (MACRID); its embedding_size is `latent`, its encoder_hidden_size `hidden`. mf_embedding_size,
        mlp_embedding_size and uniform negatives of NeuMF (NEUMF); its layers are `hidden`, and `batch` counts pairs,
        those of negatives too.
        """
        if unknown := set(own) - set({"macridvae": MACRID, "neumf": NEUMF}.get(kind, {})):
            raise ValueError(f"{kind} has no settings {', '.join(sorted(unknown))}")
        torch.set_num_threads(threads)
        settings = {
            "data_path": str(self._folder),
            "checkpoint_dir": str(self._folder),
            "benchmark_filename": ["train"],  # one part, nothing split off or filtered
            "USER_ID_FIELD": USER,
            "ITEM_ID_FIELD": ITEM,
            "train_neg_sample_args": None,
            "gpu_id": "",
            "use_gpu": False,
            "seed": seed,
            "train_batch_size": batch,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "dropout_prob": dropout,
            "anneal_cap": beta_cap,
            "total_anneal_steps": anneal_steps,
        }
        hidden = [600] if hidden is None else hidden
        if kind == "macridvae":
            settings |= MACRID | own | {"encoder_hidden_size": hidden, "embedding_size": latent}
        elif kind == "neumf":
            given = NEUMF | own
            negatives = given.pop("negatives")
            settings |= given | {"mlp_hidden_size": hidden, "mf_train": True, "mlp_train": True}
            settings["train_neg_sample_args"] = {
                **{"distribution": "uniform", "sample_num": negatives, "alpha": 1.0},
                **{"dynamic": False, "candidate_num": 0},
            }
        else:
            latent_dimension = 2 * latent if kind == "multvae" else latent
            settings |= {"mlp_hidden_size": hidden, "latent_dimension": latent_dimension}
        config = Config(model=MODELS[kind], dataset="pairs", config_dict=settings)
        init_seed(config["seed"], config["reproducibility"])
        (data,) = Pairs(config, self._read("users"), self._read("items"), n_users, n_items).build()
        sampler = Sampler(["train"], [data], "uniform").set_phase("train") if kind == "neumf" else None
        self._loader = get_dataloader(config, "train")(config, data, sampler, shuffle=True)
        net = get_model(config["model"])(config, data).to(config["device"])
        self._trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, net)
        self._epochs = 0
        return {"parameters": sum(p.numel() for p in net.parameters()), "batches": len(self._loader)}

    def epoch(self) -> dict[str, Any]:
        """One epoch as Trainer.fit times it, so no evaluation, no checkpoint; `loss` is the mean of its batches."""
        begin, begin_cpu = time.perf_counter(), time.process_time()
        loss = self._trainer._train_epoch(self._loader, self._epochs)
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - begin_cpu
        self._epochs += 1
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "loss": loss / len(self._loader)}

    def lists(self, k: int) -> dict[str, Any]:
        """Leave `ranked`, lists of users whose items (seen_ptr, seen_items) are folded in, and not listed.

        RecBole itself scores users of its training only; these rows go through the net as theirs do.
        """
        net, ptr, seen = self._trainer.model.eval(), self._read("seen_ptr"), self._read("seen_items")
        parts = []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for first in range(0, len(ptr) - 1, ROWS):
                ends = ptr[first : first + ROWS + 1]
                rows = torch.zeros(len(ends) - 1, net.n_items)
                rows[np.repeat(np.arange(len(rows)), np.diff(ends)), seen[ends[0] : ends[-1]] + 1] = 1.0
                given = net(rows)
                scores = given[0] if isinstance(given, tuple) else given
                parts.append(best(scores[:, 1:].numpy(), ends, seen, k))
        np.save(self._folder / "ranked.npy", np.concatenate(parts), allow_pickle=False)
        return {}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    folder = Path(sys.argv.pop(1))  # RecBole reads what is left of the command line
    os.chdir(folder)  # and writes its logs where it is run
    serve(Worker(folder))
