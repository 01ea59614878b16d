"""MPMA: quality beside biased MF and each component, what each part brings, calibration, seconds of an EM iteration.

    python -m tests.bench.mpma [--only quality,parts,time] [--rounds N] [--quick]

Quality on the fixed q3 splits of ml-100k and ml-1m, where ../shared/data is: settings were picked on the validation
part, the figures are of the test part after a fit on train and validation part; predictions are clipped to 1..5 for the
RMSE alone. `--rounds`: seeds, and rounds of times. `--quick`: an iteration on small synthetic ratings.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from sparkcf.config.factorization import ALSConfig, MPMAConfig
from sparkcf.kernels.mixture import CALIBRATION_MEASURES, Mixture, calibration
from sparkcf.models.als.fit import fit_arrays as fit_als
from sparkcf.models.contract_data import UserBlock
from sparkcf.models.mpma.fit import fit_arrays
from tests.bench import quality
from tests.bench.report import Goal, print_table, run
from tests.bench.synthetic import QUICK, Interactions, interactions
from tests.bench.timing import Times

SPLITS = ("ml-100k", "ml-1m")
# Biased MF by explicit ALS, picked on the validation part from rank 5 to 40, exponent 0 to 1 and the regularization.
ALS: dict[str, dict[str, Any]] = {
    "ml-100k": {"rank": 20, "regularization": 1.4, "iterations": 15},
    "ml-1m": {"rank": 14, "regularization": 1.0, "iterations": 15},
}
TUNED: dict[str, dict[str, Any]] = {
    "ml-100k": {"regularization": 1.4, "local_regularization": 6.0, "user_groups": 2, "item_groups": 2},
    "ml-1m": {},
}
FM_MCMC = {"ml-100k": 0.8963, "ml-1m": 0.8333}  # RMSE of model=fm, docs/measured.md
PARTS: dict[str, dict[str, Any]] = {
    "global alone": {"components": ("global",)},
    "global, user-local": {"components": ("global", "user_local")},
    "global, item-local": {"components": ("global", "item_local")},
    "all three, equal weights": {"weights": "equal"},
    "plain EM": {"responsibilities": "plain", "weights": "global"},
    "tempered": {"responsibilities": "tempered", "weights": "global"},
    "held out": {"weights": "global"},
    "held out, group": {"weights": "group"},
    "held out, user_item": {"weights": "user_item"},
    "held out, SGD": {"weights": "user_item", "factors": "sgd", "base_iterations": 25},
}
TIMED_RANK = 20


def rmse(predicted: np.ndarray, actual: np.ndarray) -> float:
    return float(np.sqrt(np.mean((np.clip(predicted, 1, 5) - actual) ** 2)))


def ratings(split: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, tuple[int, int]]:
    """The archive, the pairs and ratings of train and validation part, users and items."""
    data = quality.load(f"{split}-q3")
    pairs = np.concatenate([data["train"], data["valid"]])
    values = np.concatenate([data["train_rating"], data["valid_rating"]]).astype(np.float32)
    return data, pairs, values, (int(data["n_users"]), int(data["n_items"]))


def mixture_of(split: str, given: dict[str, Any], seed: int) -> Mixture:
    """The distributions of the test pairs."""
    data, pairs, values, sizes = ratings(split)
    config = MPMAConfig(**(TUNED[split] | given))
    trained, scorer = fit_arrays(pairs[:, 0], pairs[:, 1], values, *sizes, config, seed)
    users = data["test"][:, 0]
    block = UserBlock(trained.rows[0][users], np.zeros(len(users), np.float32), trained.present[0][users])
    return scorer.mixture(block, data["test"][:, 1].astype(np.int32))


def biased_mf(split: str, seed: int) -> np.ndarray:
    """Predictions of the test pairs by explicit ALS with biases."""
    data, pairs, values, sizes = ratings(split)
    config = ALSConfig(mode="explicit", biases=True, solver="cholesky", regularization_exponent=0.5, **ALS[split])
    found = fit_als(pairs[:, 0], pairs[:, 1], values, *sizes, config, seed)
    users, items = data["test"].T
    products = np.einsum("nk,nk->n", found.user[users], found.item[items])
    return products + found.user_bias[users] + found.item_bias[items] + found.mean


def qualities(rounds: int, quick: bool, goals: list[Goal]) -> None:
    table = []
    for split in SPLITS:
        actual = quality.load(f"{split}-q3")["test_rating"].astype(np.float64)
        begin = time.perf_counter()
        found = [mixture_of(split, {}, seed) for seed in range(1, rounds + 1)]
        seconds = (time.perf_counter() - begin) / rounds
        plain = [mixture_of(split, {"components": ("global",), "weights": "global"}, s) for s in range(1, rounds + 1)]
        figures = {
            "biased MF (explicit ALS)": [rmse(biased_mf(split, seed), actual) for seed in range(1, rounds + 1)],
            "global model alone": [rmse(mixture.mean(), actual) for mixture in plain],
        }
        for t, name in enumerate(MPMAConfig().components):
            figures[f"component {name}"] = [rmse(mixture.means[:, t], actual) for mixture in found]
        figures["MPMA"] = [rmse(mixture.mean(), actual) for mixture in found]
        table += [(split, name, f"{np.mean(v):.4f} ± {np.std(v):.4f}") for name, v in figures.items()]
        table += [(split, "FM, MCMC", f"{FM_MCMC[split]:.4f}")]
        best = float(np.mean(figures["MPMA"]))
        for name in (*(name for name in figures if name.startswith("component")), "biased MF (explicit ALS)"):
            least = 0.004 if split == "ml-1m" else 0.0
            goals.append(Goal(f"{split}, RMSE below {name} by", float(np.mean(figures[name])) - best, least))
        goals.append(Goal(f"{split}, RMSE above FM by MCMC by", best - FM_MCMC[split], 0.002, at_least=False))
        measured, single = (
            dict(
                zip(
                    CALIBRATION_MEASURES,
                    np.mean([calibration(m, actual).mean(axis=0) for m in ms], axis=0),
                    strict=True,
                )
            )
            for ms in (found, plain)
        )
        for system, measures in (("MPMA", measured), ("global, one variance", single)):
            table += [(split, f"{system}: {name}", f"{value:.4f}") for name, value in measures.items()]
        goals.append(Goal(f"{split}, 80 % interval covers", measured["coverage_80"], 0.76))
        goals.append(Goal(f"{split}, 80 % interval covers at most", measured["coverage_80"], 0.84, at_least=False))
        goals.append(Goal(f"{split}, CRPS below global by", single["crps"] - measured["crps"], 0.0))
        table.append((split, "MPMA: seconds of a fit", f"{seconds:.0f}"))
    print("\nquality on the test parts, mean ± sd over the seeds")
    print_table(("split", "system", "value"), table)


def parts(rounds: int, quick: bool, goals: list[Goal]) -> None:
    """RMSE and log-likelihood of each part, one seed."""
    table = []
    for split in SPLITS:
        actual = quality.load(f"{split}-q3")["test_rating"].astype(np.float64)
        for name, given in PARTS.items():
            found = mixture_of(split, given, 1)
            likelihood = found.log_likelihood(actual).mean()
            table.append((split, name, f"{rmse(found.mean(), actual):.4f}", f"{likelihood:.4f}"))
    print("\nwhat each part brings, test parts, seed 1")
    print_table(("split", "parts", "RMSE", "log-likelihood"), table)


def seconds(data: Interactions) -> tuple[float, float]:
    """Seconds of an EM iteration and of an explicit ALS sweep, of equal rank, one thread."""
    values = (1 + data.items % 5).astype(np.float32)
    shape = (data.users, data.items, values, data.n_users, data.n_items)
    mixed = MPMAConfig(rank=TIMED_RANK, base_iterations=1, iterations=2, refit_iterations=0, weights="global")
    plain = ALSConfig(mode="explicit", biases=True, rank=TIMED_RANK, iterations=2, solver="cholesky")
    whole: list[float] = []
    fit_arrays(*shape, mixed, 1, on_progress=lambda entry: whole.append(time.perf_counter()))
    swept = fit_als(*shape, plain, 1).log
    return whole[-1] - whole[-2], float(swept[-1]["seconds"])


def times(rounds: int, quick: bool, goals: list[Goal]) -> None:
    table, per_rating = [], []
    for size in (QUICK,) if quick else ("S", "M"):
        data = interactions(size)
        seconds(interactions(QUICK))  # compiles
        both = [seconds(data) for _ in range(rounds)]
        em, sweep = (Times(tuple(column)) for column in zip(*both, strict=True))
        table.append((size, f"{len(data):,}", em, sweep, f"{em.median / sweep.median:.2f}"))
        per_rating.append(em.median / len(data))
        goals.append(Goal(f"size {size}: EM iteration ÷ ALS sweep", em.median / sweep.median, 3.0, at_least=False))
    if len(per_rating) > 1:
        goals.append(Goal("seconds a rating, M ÷ S", per_rating[1] / per_rating[0], 1.5, at_least=False))
    print(f"\nan iteration at rank {TIMED_RANK}, one thread: seconds, median (least–greatest)")
    print_table(("size", "ratings", "EM iteration", "ALS sweep", "ratio"), table)


MEASURES = {"quality": qualities, "parts": parts, "time": times}
QUICKLY = ("time",)


def main() -> None:
    run("mpma", MEASURES, QUICKLY, __doc__, quality.SPLITS.is_dir())


if __name__ == "__main__":
    main()
