"""A blend of other models' lists by reciprocal rank fusion, with weights learned on validation.

    pairs ──▶ every member fitted on all but the held-out pairs ──▶ weights ──▶ every member fitted on all pairs
    score_i = sum over members m of w_m / (c + rank_m(i))

The blend fits its members itself: so evaluation fits them on the train part alone, as it does other models, and a run
holds all that it needs. A user's vector and an item's vector are those of the members, side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from sparkcf.config.models import BlendConfig
from sparkcf.data.arrow import collect_factors
from sparkcf.data.pairs import Reads, row_lists
from sparkcf.data.split import uniform
from sparkcf.errors import ConfigError
from sparkcf.kernels.blend import add_reciprocal_ranks, blend_weights
from sparkcf.kernels.topk import select_top
from sparkcf.kernels.vectors import unit_rows
from sparkcf.lake.arrays import Arrays, Shapes
from sparkcf.models.contract import Model, Scorer
from sparkcf.models.contract_data import (
    F32,
    F64,
    I32,
    I64,
    Features,
    FitFigure,
    FitRun,
    Fitted,
    Rows,
    Saved,
    TrainingData,
    UserBlock,
)
from sparkcf.models.explanation import Explanation, Part
from sparkcf.models.registry import implementation
from sparkcf.spark import DataFrame, F, StorageLevel, Window

LEAST_ITEMS = 5  # of a user for validation
LEAST_USERS = 20  # for validation
CANDIDATES = 300  # best new items of each member that the search for weights looks at
BLOCK = 256  # users scored at once


@dataclass(frozen=True)
class Learned:
    """Weights of the members that sum to 1; the NDCG@100 of each member and of the blend, where they were learned."""

    weights: F64
    members: tuple[float, ...] = ()
    blend: float | None = None


class Blend(Model[BlendConfig]):
    """Merges the lists of models that read positives."""

    section = BlendConfig
    scores_rows = True  # ranks are counted among the items that the user does not have

    def __init__(self, params: BlendConfig, seed: int) -> None:
        super().__init__(params, seed)
        sections = [member.section for member in params.members]
        self.members: list[Model[Any]] = [implementation(section.section)(section, seed) for section in sections]
        for member in self.members:
            if member.reads != Reads("positives"):
                raise ConfigError(f"blend.members: {member.name} reads more than positives: leave it out")

    @property
    def labels(self) -> list[str]:
        """Names of the members, numbered: "1 als"."""
        return [f"{number} {member.name}" for number, member in enumerate(self.members, 1)]

    @property
    def reads(self) -> Reads:
        return Reads("positives")

    @property
    def width(self) -> int:
        return sum(member.width for member in self.members)

    @property
    def item_width(self) -> int:
        return sum(member.item_width for member in self.members)

    def check_settings(self, pairs: DataFrame) -> None:
        for member in self.members:
            member.check_settings(pairs)

    def fit(self, data: TrainingData, run: FitRun) -> Fitted:
        """Learn the weights, unless they are given, and fit every member. Raises what a member's fit raises."""
        if run.warm_start:
            run.on_progress({"note": "train.warm_start is ignored: the members of a blend start from their seeds"})
        learned = self._learned(data, run)
        fits = [self._fit_member(number, data, run, "") for number in range(len(self.members))]
        try:
            saved = [_saved(member, fitted, data.n_items) for member, fitted in zip(self.members, fits, strict=True)]
            joined = [self._side_by_side(fits, side).withColumn("side", F.lit(side)) for side in ("user", "item")]
            cached = joined[0].unionByName(joined[1]).persist(StorageLevel.MEMORY_AND_DISK)  # see `Fitted.release`
            cached.count()  # fills the cache before the members' are freed
        finally:
            for fitted in fits:
                fitted.release()
        arrays: Arrays = {"weights": learned.weights}
        for number, one in enumerate(saved):
            arrays |= {f"{number}.{name}": array for name, array in one.arrays.items()}
            arrays |= {f"{number}:bias": one.item_bias, f"{number}:known": one.item_known.astype(np.uint8)}
        user, item = (cached.where(F.col("side") == side).drop("side") for side in ("user", "item"))
        return Fitted(user, item, arrays=arrays, cached=cached, figures=self._figures(learned))

    def _figures(self, learned: Learned) -> list[FitFigure]:
        named = zip(self.labels, learned.weights.tolist(), strict=True)
        figures = [FitFigure("blend_weight", weight, f"member {label}") for label, weight in named]
        alone = zip(self.labels, learned.members, strict=False)
        figures += [FitFigure("validation_ndcg_at_100", value, f"member {label}") for label, value in alone]
        return figures + ([] if learned.blend is None else [FitFigure("validation_ndcg_at_100", learned.blend)])

    def _fit_member(self, number: int, data: TrainingData, run: FitRun, part: str) -> Fitted:
        """Fit one member. `part` : of the data, which keeps its packed rows and checkpoints apart."""
        label, member = self.labels[number], self.members[number]
        apart = f"blend{number}{part}"
        packing = None if data.packing is None else replace(data.packing, name=f"{data.packing.name}-{apart}")
        folder = None if run.checkpoint_dir is None else f"{run.checkpoint_dir}-{apart}"
        run.on_progress({"note": f"fitting member {label}{' for its weight' if part else ''}"})

        def on_progress(entry: dict[str, Any]) -> None:
            if "note" in entry:
                run.on_progress({"note": f"{label}: {entry['note']}"})

        try:
            return member.fit(replace(data, packing=packing), FitRun(None, on_progress, folder))
        finally:
            if packing is not None and member.packs_rows:
                packing.drop()

    def _learned(self, data: TrainingData, run: FitRun) -> Learned:
        if self.params.weights is not None:
            return Learned(np.array(self.params.weights) / sum(self.params.weights))
        heldout = self._held_out(data.pairs).persist(StorageLevel.MEMORY_AND_DISK)  # unpersisted below
        try:
            tested = heldout.select("user_idx").distinct().count()
            if tested < LEAST_USERS:
                run.on_progress(
                    {"note": f"blend: {tested} users have {LEAST_ITEMS} items, too few to learn weights: equal weights"}
                )
                return Learned(np.full(len(self.members), 1 / len(self.members)))
            pair = ["user_idx", "item_idx"]
            rest = replace(data, pairs=data.pairs.join(heldout.select(*pair), on=pair, how="left_anti"))
            learned = self._on_validation(rest, heldout, run)
        finally:
            heldout.unpersist()
        named = zip(self.labels, learned.weights, learned.members, strict=True)
        shown = ", ".join(f"{label} {weight:.2f} (alone {ndcg:.4f})" for label, weight, ndcg in named)
        run.on_progress({"note": f"blend weights: {shown}; validation NDCG@100 {learned.blend:.4f}"})
        return learned

    def _held_out(self, pairs: DataFrame) -> DataFrame:
        """user_idx, item_idx of the validation: a share of the items of some users, by hash."""
        counts = pairs.groupBy("user_idx").agg(F.count(F.lit(1)).alias("n")).where(F.col("n") >= LEAST_ITEMS)
        order = (uniform(self.seed, "blend-user", F.col("user_idx")), "user_idx")
        chosen = counts.orderBy(*order).limit(self.params.validation_users)
        own = pairs.join(F.broadcast(chosen), on="user_idx", how="inner")
        by_user = Window.partitionBy("user_idx")
        ordered = by_user.orderBy(uniform(self.seed, "blend-item", F.col("user_idx"), F.col("item_idx")), "item_idx")
        kept = F.row_number().over(ordered) <= F.ceil(F.col("n") * self.params.validation_share)
        return own.withColumn("held", kept).where("held").select("user_idx", "item_idx")

    def _on_validation(self, data: TrainingData, heldout: DataFrame, run: FitRun) -> Learned:
        """Fit every member on the data, and learn the weights from lists of the users with held-out items."""
        tested = heldout.groupBy("user_idx").agg(F.sort_array(F.collect_list("item_idx")).alias("heldout"))
        users: Any = tested.join(row_lists(data.pairs), on="user_idx", how="left").orderBy("user_idx").toPandas()
        rows = _rows_of(users)
        held = (_indptr(users["heldout"]), _flat(users["heldout"], np.int32))
        scorers, blocks = [], []
        for number, member in enumerate(self.members):
            fitted = self._fit_member(number, data, run, "v")
            try:
                scorers.append(member.open(_saved(member, fitted, data.n_items)))
                wanted = fitted.user_factors.join(F.broadcast(tested.select(F.col("user_idx").alias("idx"))), "idx")
                vectors, bias, known = collect_factors(wanted, data.n_users, member.width)
            finally:
                fitted.release()
            own = users["user_idx"].to_numpy(np.int64)
            blocks.append(UserBlock(vectors[own], bias[own], known[own], rows))
        return learn(scorers, blocks, held, self.params)

    def _side_by_side(self, fits: Sequence[Fitted], side: str) -> DataFrame:
        """idx, factor, bias: the members' vectors side by side; zeros for a row that a member does not know."""
        widths = [member.width if side == "user" else member.item_width for member in self.members]
        frames = [getattr(fitted, f"{side}_factors") for fitted in fits]
        named = [frame.select("idx", F.col("factor").alias(f"factor{n}")) for n, frame in enumerate(frames)]
        joined = reduce(lambda left, right: left.join(right, on="idx", how="full"), named)
        zero = F.lit(0.0).cast("float")
        parts = [F.coalesce(f"factor{n}", F.array_repeat(zero, width)) for n, width in enumerate(widths)]
        return joined.select("idx", F.concat(*parts).cast("array<float>").alias("factor"), zero.alias("bias"))

    def open(self, saved: Saved) -> BlendScorer:
        ends = np.cumsum([member.item_width for member in self.members])[:-1]
        vectors = np.split(saved.item_vectors, ends, axis=1)
        scorers = []
        for number, (member, own) in enumerate(zip(self.members, vectors, strict=True)):
            prefix = f"{number}."
            arrays = {name.removeprefix(prefix): a for name, a in saved.arrays.items() if name.startswith(prefix)}
            known, bias = (_of_length(saved.arrays[f"{number}:{name}"], len(own)) for name in ("known", "bias"))
            scorers.append(member.open(Saved(np.ascontiguousarray(own), bias, known.astype(bool), arrays)))
        return BlendScorer(scorers, [m.width for m in self.members], saved.arrays["weights"], self.params, self.labels)

    def shapes(self, data: TrainingData) -> Shapes:
        shapes: dict[str, tuple[int | None, ...]] = {"weights": (len(self.members),)}
        for number, member in enumerate(self.members):
            shapes |= {f"{number}.{name}": shape for name, shape in member.shapes(data).items()}
            shapes |= dict.fromkeys((f"{number}:bias", f"{number}:known"), (data.n_items,))
        return shapes


class BlendScorer(Scorer):
    """Mixes the reciprocal ranks of the members' scores.

    Parameters
    ----------
    widths : lengths of the members' user vectors, which stand side by side.
    weights : (members,).
    labels : the members' names.
    """

    def __init__(
        self, members: Sequence[Scorer], widths: Sequence[int], weights: F64, params: BlendConfig, labels: Sequence[str]
    ) -> None:
        self.members, self.weights, self.params, self.labels = members, np.asarray(weights), params, labels
        self.known_items = np.any([member.known_items for member in members], axis=0)
        self._ends = np.cumsum(widths)[:-1]

    def score_block(self, users: UserBlock) -> F32:
        assert users.rows is not None
        blocks = self._blocks(users)
        return self._mixed(
            [one.score_block(block) for one, block in zip(self.members, blocks, strict=True)], users.rows
        )

    def _blocks(self, users: UserBlock) -> list[UserBlock]:
        """The users as each member knows them."""
        vectors = np.split(users.vectors, self._ends, axis=1)
        return [UserBlock(np.ascontiguousarray(own), users.bias, users.known, users.rows) for own in vectors]

    def _mixed(self, scores: list[F32], had: tuple[I64, I32] | Rows) -> F32:
        out = np.zeros(scores[0].shape, np.float32)
        for member, weight, own in zip(self.members, self.weights, scores, strict=True):
            if weight > 0:
                own[:, ~member.known_items] = -np.inf
                add_reciprocal_ranks(
                    np.ascontiguousarray(own, np.float32), (had[0], had[1]), float(weight), *_ranks(self.params), out
                )
        return out

    def fold_in(self, rows: Rows, features: Features | None = None) -> tuple[F32, F32]:
        vectors = [member.fold_in(rows)[0] for member in self.members]
        return np.concatenate(vectors, axis=1), np.zeros(len(rows[0]) - 1, np.float32)

    def similar_block(self, items: I32) -> F32:
        """The members' similarities, mixed by their reciprocal ranks as scores are."""
        own = (np.arange(len(items) + 1, dtype=np.int64), items)
        return self._mixed([np.array(member.similar_block(items)) for member in self.members], own)

    @property
    def has_likeness(self) -> bool:
        return any(member.has_likeness for member in self.members)

    def likeness(self) -> F32:
        """The unit vectors of the members that have any, side by side."""
        return np.concatenate([unit_rows(one.likeness()) for one in self.members if one.has_likeness], axis=1)

    def explain(self, user: UserBlock, item: int) -> Explanation:
        """What each member brings: its weight over the constant and its rank."""
        assert user.rows is not None
        parts = []
        for number, block in enumerate(self._blocks(user)):
            share = np.zeros((1, len(self.known_items)), np.float32)
            scores = np.array(self.members[number].score_block(block))
            scores[:, ~self.members[number].known_items] = -np.inf
            add_reciprocal_ranks(scores, user.rows[:2], 1.0, *_ranks(self.params), share)
            value = float(share[0, item])
            rank = f"rank {round(1 / value - self.params.rank_constant)}" if value else f"below {self.params.depth}"
            parts.append(Part("member", f"{self.labels[number]}: {rank}", None, value * float(self.weights[number])))
        return Explanation.summing(float(self.score_block(user)[0, item]), parts)

    def because(self, users: UserBlock, items: I32) -> I32 | None:
        """The reasons of the member of the largest weight that has any."""
        blocks = self._blocks(users)
        for number in np.argsort(-self.weights, kind="stable"):
            found = self.members[number].because(blocks[number], items) if self.weights[number] > 0 else None
            if found is not None:
                return found
        return None


def learn(
    scorers: Sequence[Scorer], blocks: Sequence[UserBlock], heldout: tuple[I64, I32], params: BlendConfig
) -> Learned:
    """Weights by which the mixed lists find most of the held-out items.

    Parameters
    ----------
    scorers : the members, fitted without the held-out pairs.
    blocks : the same users as each member knows them, with their rows.
    heldout : indptr (n + 1,), indices.
    """
    n, wide = len(blocks[0]), CANDIDATES * len(scorers)
    items, shares = np.full((n, wide), -1, np.int32), [np.zeros((n, wide), np.float32) for _ in scorers]
    for start in range(0, n, BLOCK):
        chosen = np.arange(start, min(start + BLOCK, n))
        ranks = [_new_ranks(one, block.take(chosen), params) for one, block in zip(scorers, blocks, strict=True)]
        best = np.concatenate([select_top(own, CANDIDATES)[0] for own in ranks], axis=1)
        for row, listed in zip(chosen, best, strict=True):
            found = np.unique(listed[listed >= 0])
            items[row, : len(found)] = found
            for share, own in zip(shares, ranks, strict=True):
                share[row, : len(found)] = np.maximum(own[row - start, found], 0)
    return Learned(*_typed(blend_weights(shares, items, heldout)))


def _typed(found: tuple[F64, list[float], float]) -> tuple[F64, tuple[float, ...], float]:
    return found[0], tuple(found[1]), found[2]


def _new_ranks(scorer: Scorer, users: UserBlock, params: BlendConfig) -> F32:
    """1 / (constant + rank) of the items that the users do not have, (n, m); -inf for all others."""
    assert users.rows is not None
    indptr, indices = users.rows[:2]
    scores = np.array(scorer.score_block(users))
    scores[:, ~scorer.known_items] = -np.inf
    out = np.zeros(scores.shape, np.float32)
    add_reciprocal_ranks(scores, (indptr, indices), 1.0, *_ranks(params), out)
    out[np.repeat(np.arange(len(users)), np.diff(indptr)), indices] = 0
    out[out == 0] = -np.inf
    return out


def _ranks(params: BlendConfig) -> tuple[float, int]:
    return params.rank_constant, params.depth


def _of_length(of_items: Any, n_items: int) -> Any:
    """An array of the items at the fit, (any,), as one of `n_items`: the lake may have more, a reader need fewer."""
    own = np.asarray(of_items)[:n_items]
    return np.pad(own, (0, n_items - len(own)))


def _saved(member: Model[Any], fitted: Fitted, n_items: int) -> Saved:
    """A member's fit as arrays in this process."""
    vectors, bias, known = collect_factors(fitted.item_factors, n_items, member.item_width)
    return Saved(vectors, bias, known, fitted.arrays, fitted.mean, fitted.average)


def _rows_of(users: Any) -> Rows:
    """The columns ROW of a frame of users as compressed rows."""
    lists: Mapping[str, Any] = {name: users[name] for name in ("row_items", "row_values", "row_weights")}
    values, weights = (_flat(lists[name], np.float32) for name in ("row_values", "row_weights"))
    return _indptr(lists["row_items"]), _flat(lists["row_items"], np.int32), values, weights


def _indptr(lists: Any) -> I64:
    return np.concatenate([[0], np.cumsum([0 if own is None else len(own) for own in lists])]).astype(np.int64)


def _flat(lists: Any, dtype: Any) -> Any:
    return np.concatenate([np.empty(0, dtype), *(np.asarray(own, dtype) for own in lists if own is not None)])
