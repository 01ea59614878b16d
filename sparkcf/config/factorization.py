"""Parameters of the matrix factorizations: ALS, HALS and MPMA."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from sparkcf.config.section import ModelSection, NonNegative, Positive


class FactorizationConfig(ModelSection):
    """Parameters of ALS and HALS."""

    mode: Literal["implicit", "explicit"] = "implicit"
    form: Literal["ials", "hu_koren", "implicit", "frobenius"] = "ials"  # implicit: models/als/objective.py
    rank: Annotated[int, Field(ge=1, le=4096)] = 64
    iterations: Positive = 16
    regularization: NonNegative = 0.003
    regularization_exponent: NonNegative = 1.0
    unobserved_weight: NonNegative = 0.1  # alpha0, form ials
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # forms hu_koren and implicit
    biases: bool = False  # explicit only
    nonnegative: bool = False  # factors >= 0: als with solver=cholesky (each row exactly) or hals
    init_sd: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1  # entries ~ N(0, init_sd / sqrt(rank))
    tolerance: NonNegative = 0.0  # stop when the objective falls by a smaller share in a sweep; 0: never
    save_every: Annotated[int, Field(ge=0)] = 5  # sweeps between checkpoints; 0: none
    workers: Positive | None = None  # size of the gang; None: all task slots
    timeout_s: Positive = 60  # seconds; a peer silent for longer counts as dead

    @model_validator(mode="after")
    def _consistent(self) -> FactorizationConfig:
        if self.biases and self.mode == "implicit":
            raise ValueError("biases go with mode explicit: set biases to false or mode to explicit")
        if self.biases and self.nonnegative:
            raise ValueError("biases may be negative: set biases or nonnegative to false")
        return self

    @property
    def width(self) -> int:
        """Columns of a stored row: the vector and, if there is one, the bias."""
        return self.rank + self.biases


class ALSConfig(FactorizationConfig):
    """Alternating least squares, implicit or explicit."""

    section: ClassVar[str] = "als"
    implementation: ClassVar[str] = "sparkcf.models.als.fit:ALS"

    solver: Literal["cg", "cholesky", "subspace"] = "cg"  # cg: fastest to a given objective: tests/bench/als.py
    cg_steps: Positive = 3
    subspace_size: Positive = 64  # subspace: dimensions solved at a time

    @model_validator(mode="after")
    def _solvable(self) -> ALSConfig:
        if self.nonnegative and self.solver != "cholesky":
            raise ValueError(f"nonnegative goes with solver=cholesky, not {self.solver}, or with model=hals")
        return self

    @property
    def steps(self) -> int:
        """Steps of conjugate gradient, or dimensions in a block of the subspace solver."""
        return self.cg_steps if self.solver == "cg" else min(self.subspace_size, self.width)


class HALSConfig(FactorizationConfig):
    """The objectives of ALS, solved one dimension at a time."""

    section: ClassVar[str] = "hals"
    implementation: ClassVar[str] = "sparkcf.models.als.fit:HALS"

    passes: Positive = 1  # over all dimensions of a row in a half-sweep

    @property
    def solver(self) -> str:
        return "hals"

    @property
    def steps(self) -> int:
        return self.passes


class MPMAConfig(ModelSection):
    """Mixture of a global and two local matrix factorizations; see `sparkcf/models/mpma/train.py`."""

    section: ClassVar[str] = "mpma"
    implementation: ClassVar[str] = "sparkcf.models.mpma.fit:MPMA"

    components: Annotated[tuple[Literal["global", "user_local", "item_local"], ...], Field(min_length=1)] = (
        "global",
        "user_local",
        "item_local",
    )
    rank: Annotated[int, Field(ge=1, le=1024)] = 20
    base_iterations: Positive = 12  # sweeps of each component on the whole matrix, before rows are split by group
    iterations: Positive = 4  # EM iterations
    refit_iterations: Annotated[int, Field(ge=0)] = 3  # last sweeps, with the held-out ratings
    factors: Literal["solve", "sgd"] = "solve"  # solve: each row exactly; sgd: weighted gradient steps
    sgd_steps: Positive = 3  # sgd: passes over the entries of a row in a half-sweep
    sgd_learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.005
    regularization: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.1
    regularization_exponent: NonNegative = 0.5  # nu: a row of n ratings has the penalty regularization x n^nu
    bias_share: Annotated[float, Field(gt=0, le=1)] = 0.25  # penalty of a bias, as a share of that of a vector
    local_regularization: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0  # pulls local rows to shared ones
    init_sd: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1  # entries ~ N(0, init_sd / sqrt(rank))
    user_groups: Positive = 4
    item_groups: Positive = 4
    user_group_column: str | None = None  # attribute of users that gives the groups; None: k-means on factors
    item_group_column: str | None = None  # attribute of items that gives the groups; None: k-means on factors
    min_group: Positive = 20  # rows of a smaller group have no local component
    # What weighs a rating in the factors. plain: responsibilities; tempered: those to the power 1 / temperature;
    # held_out: all alike, and held-out ratings give weights and variances; auto: the best on held-out ratings
    responsibilities: Literal["plain", "tempered", "held_out", "auto"] = "held_out"
    temperature: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 5.0
    # equal: no fit; global: one for each component; group: for user group x item group; user_item: user's x item's
    weights: Literal["equal", "global", "group", "user_item", "auto"] = "auto"
    weight_prior: NonNegative = 50.0  # group, user_item: ratings that the global weights count for
    min_sd: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.05  # floor of a component's standard deviation
    heldout_share: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of ratings, that give weights and standard deviations
    rank_by: Literal["mean", "lower_bound", "chance"] = "mean"  # order of lists; chance: of a rating >= threshold
    lower_bound_sds: NonNegative = 1.0  # lower_bound: standard deviations below the mean
    threshold: Annotated[float, Field(allow_inf_nan=False)] = 4.0  # chance
    save_every: Annotated[int, Field(ge=0)] = 5  # sweeps between checkpoints; 0: none
    workers: Positive | None = None  # size of the gang; None: all task slots
    timeout_s: Positive = 60  # seconds; a peer silent for longer counts as dead

    @model_validator(mode="after")
    def _consistent(self) -> MPMAConfig:
        if len(set(self.components)) < len(self.components):
            raise ValueError(f"components {list(self.components)} repeat a name: name each once")
        if len(self.components) > 1 and "global" not in self.components:
            raise ValueError("components leave out global, which ratings without a group need: add it")
        if not self.heldout_share and (self.responsibilities in ("held_out", "auto") or self.weights == "auto"):
            raise ValueError(
                "heldout_share=0 leaves no ratings for responsibilities=held_out or auto, or weights=auto: raise it, "
                "or set responsibilities to plain or tempered and weights to global, group, user_item or equal"
            )
        return self

    @property
    def bias_constant(self) -> float:
        """What stands in the other side's vectors for the bias: its penalty is divided by the square."""
        return self.bias_share**-0.5

    def blocks(self, side: Literal["user", "item"]) -> list[int]:
        """Vectors of a row in each component: 1, or where the component splits the side, one for each group."""
        counts = {"user_local": ("item", self.user_groups), "item_local": ("user", self.item_groups)}
        splits = (counts.get(name, ("", 1)) for name in self.components)
        return [groups if split == side else 1 for split, groups in splits]

    def split(self, side: Literal["user", "item"]) -> list[bool]:
        """Whether each component splits the rows of a side by the other side's groups."""
        splitting = {"user": "item_local", "item": "user_local"}[side]
        return [name == splitting for name in self.components]

    def width_of(self, side: Literal["user", "item"]) -> int:
        """Length of a stored row: the vectors with their biases, the shared ones, mixture weights, the group."""
        vectors = sum(self.blocks(side)) + sum(self.split(side))
        return vectors * (self.rank + 1) + len(self.components) + 1
