"""The configuration: every key, its type, its default and its bounds stand here and nowhere else.

Precedence: the defaults below < `--config` files in their order < `key=value` on the command line.
"""

from __future__ import annotations

import datetime as dt
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sparkcf.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class LakeConfig(Section):
    root: Annotated[str, Field(min_length=1)] = "./lake"  # a folder or a file:, s3a:, abfss:, hdfs: address


class Columns(Section):
    """Names of the input's columns; a dotted name reaches into a nested JSON object or struct."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    ts: str = "ts"
    event: str | None = None  # None: every row is an `input.default_event`
    value: str | None = None  # None: every row has value 1
    context: tuple[str, ...] = ()  # more columns of the moment (device, weather), kept as texts under their own names


class UserColumns(Section):
    user_id: str = "user_id"
    attributes: tuple[str, ...] = ()  # texts (gender, country), kept under their own names
    numbers: tuple[str, ...] = ()  # numeric attributes, likewise


class ItemColumns(Section):
    item_id: str = "item_id"
    title: str | None = None
    categories: str | None = None
    attributes: tuple[str, ...] = ()  # as the users'
    numbers: tuple[str, ...] = ()


class AttributesInput(Section):
    """A table of the attributes of users or items, joined by their id."""

    path: str
    format: Literal["csv", "jsonl", "parquet", "delta"] = "csv"
    delimiter: str = Field(",", min_length=1)


class UsersInput(AttributesInput):
    columns: UserColumns = UserColumns()


class ItemsInput(AttributesInput):
    columns: ItemColumns = ItemColumns()
    category_separator: str = Field("|", min_length=1)
    no_category: tuple[str, ...] = ("(no genres listed)",)  # values that stand for "none"


class InputConfig(Section):
    path: str = Field(..., min_length=1)  # a glob; {ds} is replaced by the logical date; sample:NAME is packaged
    format: Literal["csv", "jsonl", "parquet", "delta"] = "csv"
    columns: Columns = Columns()
    delimiter: str = Field(",", min_length=1)  # CSV only
    header: bool = True  # CSV only: the first line of every file names its columns
    names: tuple[str, ...] = ()  # CSV without a header: the columns in order
    ts_formats: tuple[str, ...] = ("iso8601",)  # tried in order: iso8601, epoch_s|ms|us|ns or a Java pattern
    default_event: str = "rating"
    events: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = (
        None  # allowed events and their weights; None: any, weight 1
    )
    value_range: tuple[float, float] | None = None  # inclusive
    users: UsersInput | None = None
    items: ItemsInput | None = None

    @model_validator(mode="after")
    def _consistent(self) -> InputConfig:
        if self.format == "csv" and not self.header and not self.names:
            raise ValueError("header is false: give input.names, the columns in order")
        if self.value_range and self.value_range[0] > self.value_range[1]:
            raise ValueError(f"value_range {list(self.value_range)} is empty: give [low, high]")
        return self


class CleanConfig(Section):
    null_tokens: tuple[str, ...] = ("null", "NULL", "None")  # ids that stand for "no id"
    max_id_length: Positive = 256
    fold_case: bool = False  # ids to lower case
    normalize_unicode: bool = False  # ids: compatibility characters to plain ones, zero-width ones away
    earliest: dt.datetime = dt.datetime(1990, 1, 1)  # UTC; an older timestamp is taken for a fault
    future_tolerance_hours: NonNegative = 0.0  # beyond the end of the logical date (UTC)
    max_events_per_user: Positive = 100_000  # a user with more in one input is a bot
    min_events_per_user: Positive = 1
    min_events_per_item: Positive = 1
    max_quarantined_share: Share = 0.5  # above it the input is refused as a whole


class PreferenceConfig(Section):
    """How interactions become the weight of a (user, item) pair."""

    positive_from: float | None = None  # implicit models and ranking measures: a value from here up is a positive
    # Of a positive: 1, its value, or its event's weight (input.events). Of a rating (explicit): 1, or its event's.
    weight: Literal["one", "value", "event"] = "one"


class FactorizationConfig(Section):
    """What ALS and HALS have in common."""

    section: ClassVar[str] = ""  # the key that it stands under

    mode: Literal["implicit", "explicit"] = "implicit"
    form: Literal["ials", "hu_koren", "implicit", "frobenius"] = "ials"  # implicit objective: sparkcf/objective.py
    rank: Annotated[int, Field(ge=1, le=4096)] = 64
    iterations: Positive = 16
    regularization: NonNegative = 0.003
    regularization_exponent: NonNegative = 1.0
    unobserved_weight: NonNegative = 0.1  # alpha0, form ials
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0  # forms hu_koren and implicit
    biases: bool = False  # explicit only
    nonnegative: bool = False
    init_sd: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1  # entries ~ N(0, init_sd / sqrt(rank))
    tolerance: NonNegative = 0.0  # stop when the objective falls by a smaller share in a sweep; 0: never
    save_every: Annotated[int, Field(ge=0)] = 5  # sweeps between savings of progress; 0: never
    workers: Positive | None = None  # size of the gang; None: all task slots
    timeout_s: Positive = 60  # a peer silent for longer is taken for dead

    @model_validator(mode="after")
    def _consistent(self) -> FactorizationConfig:
        if self.biases and self.mode == "implicit":
            raise ValueError("biases go with mode explicit: set biases to false or mode to explicit")
        if self.biases and self.nonnegative:
            raise ValueError("biases may be negative: set biases or nonnegative to false")
        return self

    @property
    def width(self) -> int:
        """Columns of a stored row: the vector, and the bias where there is one."""
        return self.rank + self.biases


class ALSConfig(FactorizationConfig):
    section: ClassVar[str] = "als"

    solver: Literal["cg", "cholesky", "subspace"] = "cg"  # the first to an objective at every rank: tests/bench/als.py
    cg_steps: Positive = 3
    subspace_size: Positive = 64  # dimensions that the subspace solver solves at a time

    @model_validator(mode="after")
    def _solvable(self) -> ALSConfig:
        if self.nonnegative and self.solver != "cholesky":
            raise ValueError(f"nonnegative goes with solver=cholesky, not {self.solver}, or with model=hals")
        return self

    @property
    def steps(self) -> int:
        """The solver's own count: steps of conjugate gradient, or dimensions in a block."""
        return self.cg_steps if self.solver == "cg" else min(self.subspace_size, self.width)


class HALSConfig(FactorizationConfig):
    section: ClassVar[str] = "hals"

    passes: Positive = 1  # over all dimensions of a row in a half-sweep

    @property
    def solver(self) -> str:
        return "hals"

    @property
    def steps(self) -> int:
        return self.passes


class GradientConfig(Section):
    """How parameters are trained by gradient: Adam over mini-batches."""

    section: ClassVar[str] = ""  # the key that it stands under

    epochs: Positive = 100
    batch_size: Positive = 500  # rows that all workers have together in a step
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    weight_decay: NonNegative = 0.0
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # of a step's gradient; None: as it is
    patience: Annotated[int, Field(ge=0)] = 10  # epochs without a better validation that end the training; 0: never
    mixed_precision: bool = True  # on CUDA: bfloat16 where it is safe
    workers: Positive | None = None  # processes; None: all task slots
    timeout_s: Positive = 50  # a peer silent for longer is taken for dead

    def kl_weight(self, update: int) -> float:
        """beta at an update, from 0."""
        return 0.0


class NetConfig(GradientConfig):
    """What the nets over users' rows have in common."""

    hidden: tuple[Positive, ...] = (600,)  # widths between a row and the latent vector; the decoder has them reversed
    latent_dim: Positive = 200
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of a row's entries, while training
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of users, kept from training; 0: last epoch is kept

    @property
    def gradient(self) -> GradientConfig:
        return self


class MultVAEConfig(NetConfig):
    section: ClassVar[str] = "multvae"

    likelihood: Literal["multinomial", "gaussian", "logistic"] = "multinomial"
    anneal_cap: NonNegative = 0.2  # beta rises to it from 0
    anneal_steps: Annotated[int, Field(ge=0)] = 20_000  # over so many updates; 0: it is the cap from the start

    def kl_weight(self, update: int) -> float:
        return self.anneal_cap * min(1.0, update / self.anneal_steps) if self.anneal_steps else self.anneal_cap


class MultDAEConfig(NetConfig):
    section: ClassVar[str] = "multdae"

    likelihood: Literal["multinomial", "gaussian", "logistic"] = "multinomial"
    hidden: tuple[Positive, ...] = ()
    weight_decay: NonNegative = 0.00002


class FMField(Section):
    """A group of features of a factorization machine, see `sparkcf/fm/features.py`."""

    name: str = Field(..., pattern=r"^[A-Za-z][A-Za-z0-9_]{0,39}$")
    # user, item: the id; categories: the item's; attribute: a text, number: a number, both of `table`; history: the
    # user's items, each with the weight 1 / sqrt(how many); hour, weekday: of the timestamp, UTC; previous: the item
    # that the user had before
    of: Literal["user", "item", "categories", "attribute", "number", "history", "hour", "weekday", "previous"]
    column: str | None = None  # attribute, number: its name
    table: Literal["users", "items", "interactions"] = "items"  # attribute, number: whose it is
    regularization: NonNegative | None = None  # of this field's vectors; None: fm.regularization
    linear_regularization: NonNegative | None = None  # of its weights; None: fm.linear_regularization

    @model_validator(mode="after")
    def _complete(self) -> FMField:
        if (self.of in ("attribute", "number")) != (self.column is not None):
            raise ValueError("column goes with of: attribute or number, and these with it")
        return self

    @property
    def side(self) -> Literal["user", "item", "context"]:
        """Whose features these are: a user's, an item's, or of the moment when they meet."""
        if self.of in ("attribute", "number"):
            sides: dict[str, Literal["user", "item", "context"]]
            sides = {"users": "user", "items": "item", "interactions": "context"}
            return sides[self.table]
        if self.of in ("user", "history"):
            return "user"
        return "item" if self.of in ("item", "categories") else "context"

    @property
    def dictionary(self) -> str | None:
        """What the numbers of its texts are filed under; None: it has no texts."""
        if self.of == "categories":
            return "categories"
        return f"{self.table}.{self.column}" if self.of == "attribute" else None

    @property
    def whose(self) -> str:
        """What a row of its table is."""
        return {"users": "user", "items": "item", "interactions": "event"}[self.table]

    @property
    def source_key(self) -> str:
        """The configuration's key that brings it into the lake."""
        if self.of == "categories":
            return "input.items.columns.categories"
        if self.table == "interactions":
            return "input.columns.context"
        return f"input.{self.table}.columns.{'numbers' if self.of == 'number' else 'attributes'}"


class SGDConfig(GradientConfig):
    """Of a factorization machine that learns by gradient; its penalties are fm.regularization's."""

    section: ClassVar[str] = "fm.sgd"

    epochs: Positive = 20
    batch_size: Positive = 1000
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.003


class FMConfig(Section):
    """Factorization machine: ALS solves each feature's (v, w), MCMC draws it, SGD goes down the gradient."""

    section: ClassVar[str] = "fm"

    fields: Annotated[tuple[FMField, ...], Field(min_length=1)] = (
        FMField(name="user", of="user"),
        FMField(name="item", of="item"),
    )
    pairs: tuple[tuple[str, str], ...] | None = None  # names of fields that interact; None: all, and with themselves
    task: Literal["regression", "classification"] = "regression"  # classification: yes or no, by probit; sgd: logistic
    learner: Literal["mcmc", "als", "sgd"] = "mcmc"
    rank: Annotated[int, Field(ge=1, le=1024)] = 32
    iterations: Positive = 120
    burn_in: Annotated[int, Field(ge=0)] = 20  # mcmc: sweeps before the first sample
    samples: Positive = 20  # mcmc: kept, evenly thinned; predictions are their mean
    regularization: NonNegative = 1.0  # als, sgd: of vectors
    linear_regularization: NonNegative = 1.0  # als, sgd: of weights
    intercept: bool = True  # w_0 is fitted; False: it is the mean
    # The moment that vectors, and so lists, are made for: by field, a text, a number, or an hour; previous is every
    # user's last item. A field of the moment that is not named adds nothing.
    context: dict[str, str | float] = {}
    init_sd: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    tolerance: NonNegative = 0.0  # als: stop when the objective falls by a smaller share in a sweep; 0: never
    workers: Positive | None = None  # size of the gang; None: all task slots
    timeout_s: Positive = 60  # a peer silent for longer is taken for dead
    sgd: SGDConfig = SGDConfig()

    @property
    def gradient(self) -> GradientConfig:
        return self.sgd

    @model_validator(mode="after")
    def _consistent(self) -> FMConfig:
        names = [f.name for f in self.fields]
        if len(set(names)) < len(names):
            raise ValueError(f"fields {names} name one twice: name each once")
        for name in (name for pair in self.pairs or () for name in pair):
            if name not in names:
                raise ValueError(f"pairs name {name!r}, which is none of the fields {names}")
        for name, told in self.context.items():
            field = next((f for f in self.fields if f.name == name), None)
            if field is None or field.side != "context" or field.of == "previous":
                raise ValueError(f"context names {name!r}, which is no field of the moment: leave it out")
            least, size = {"number": (-math.inf, math.inf), "hour": (0, 24), "weekday": (0, 7)}.get(field.of, (0, 0))
            if size and not (isinstance(told, float) and least <= told < size):
                raise ValueError(
                    f"context gives {told!r} for {name}, a field of {field.of}: give a number in its range"
                )
        if self.learner == "mcmc" and self.burn_in >= self.iterations:
            raise ValueError(f"burn_in={self.burn_in} leaves no sample of {self.iterations} iterations: lower it")
        return self

    def interacting(self, one: str, other: str) -> bool:
        """Whether two fields interact, by their names."""
        return self.pairs is None or (one, other) in self.pairs or (other, one) in self.pairs

    @property
    def contextual(self) -> bool:
        """Whether any field is of the moment."""
        return any(f.side == "context" for f in self.fields)

    def kept_sweeps(self) -> list[int]:
        """Numbers of the sweeps, from 1, whose state is kept: evenly spaced to the last one."""
        if self.learner != "mcmc":
            return []
        n = self.iterations - self.burn_in
        count = min(self.samples, n)
        return [self.burn_in + (place + 1) * n // count for place in range(count)]

    def regularization_of(self, name: str) -> float:
        own = next((f.regularization for f in self.fields if f.name == name), None)
        return self.regularization if own is None else own

    def linear_regularization_of(self, name: str) -> float:
        own = next((f.linear_regularization for f in self.fields if f.name == name), None)
        return self.linear_regularization if own is None else own


class PopularityConfig(Section):
    by: Literal["users", "weight"] = "users"  # distinct users, or the sum of the pairs' weights


class TrainConfig(Section):
    warm_start: bool = False  # from the published run's factors, where rank and model agree
    progress: str | None = None  # folder where sweeps are saved until a run ends; None: _progress under lake.root


class EvaluationConfig(Section):
    protocol: Literal["q1", "q2", "q3", "q4"] = "q4"  # strong, weak, ratings, by time
    holdout_share: Annotated[float, Field(gt=0, lt=1)] = (
        0.1  # of users (q1), of a user's items (q2), of pairs (q3), of events (q4)
    )
    foldin_share: Annotated[float, Field(gt=0, lt=1)] = 0.8  # q1: of a held-out user's items
    min_user_items: Positive = 5  # q1, q2: users with fewer positives are left out
    ks: tuple[Positive, ...] = (10, 20, 50, 100)
    bootstrap: Annotated[int, Field(ge=0, le=10_000)] = 200  # replicates for the 95 % bounds


class TopKConfig(Section):
    k: Positive = 20
    exclude_seen: bool = True
    users: tuple[str, ...] = ()  # only these users; empty: all
    ineligible: str | None = None  # a table (csv, parquet, delta) with a column item_id never to recommend
    categories: tuple[str, ...] = ()  # only items of one of these; empty: all
    exclude_categories: tuple[str, ...] = ()
    similar_items: Annotated[int, Field(ge=0)] = 20  # neighbours an item; 0: none

    @field_validator("users", mode="before")
    @classmethod
    def _ids_are_text(cls, value: Any) -> Any:
        return [str(v) for v in value] if isinstance(value, list | tuple) else value


class PredictConfig(Section):
    path: str | None = None  # a table (csv, parquet, delta) of pairs to predict, with columns user_id and item_id


class GateConfig(Section):
    metric: str = "ndcg_at_k"
    at: Positive | None = 100  # its k; None for measures without one
    max_fall: Share = 0.1  # against the published run's figure
    min_user_coverage: Share = 0.5  # users with a recommendation from the model, among all
    max_fallback_share: Share = 1.0


class SparkConfig(Section):
    app_name: str = "sparkcf"
    log_level: Literal["OFF", "ERROR", "WARN", "INFO"] = "ERROR"


ModelName = Literal["als", "hals", "fm", "multvae", "multdae", "popularity"]


class Config(Section):
    ds: dt.date  # the logical date: never taken from the clock
    input: InputConfig
    lake: LakeConfig = LakeConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    model: ModelName = "als"
    models: tuple[ModelName, ...] = ()  # nightly: all of these, one after the other; empty: `model`
    # evaluate, recommend, publish: the run; None: the newest unpublished. fold_in, predict: None: the published run.
    run_id: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,80}$")
    clean: CleanConfig = CleanConfig()
    preference: PreferenceConfig = PreferenceConfig()
    train: TrainConfig = TrainConfig()
    als: ALSConfig = ALSConfig()
    hals: HALSConfig = HALSConfig()
    multvae: MultVAEConfig = MultVAEConfig()
    multdae: MultDAEConfig = MultDAEConfig()
    fm: FMConfig = FMConfig()
    popularity: PopularityConfig = PopularityConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    topk: TopKConfig = TopKConfig()
    predict: PredictConfig = PredictConfig()
    gate: GateConfig = GateConfig()
    spark: SparkConfig = SparkConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.gate.at is not None and self.gate.at not in self.evaluation.ks:
            raise ValueError(f"gate.at={self.gate.at} is not among evaluation.ks={list(self.evaluation.ks)}")
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"models={list(self.models)} names a model twice: name each once")
        return self

    @property
    def factorization(self) -> ALSConfig | HALSConfig | None:
        """The parameters of the model where it is a factorization."""
        if self.model == "als":
            return self.als
        return self.hals if self.model == "hals" else None

    @property
    def net(self) -> MultVAEConfig | MultDAEConfig | None:
        """The parameters of the model where it is trained by gradient."""
        if self.model == "multvae":
            return self.multvae
        return self.multdae if self.model == "multdae" else None

    @property
    def fed(self) -> bool:
        """Whether the model trains on packed rows, in processes of its own."""
        return self.net is not None or (self.model == "fm" and self.fm.learner == "sgd")

    @property
    def explicit(self) -> bool:
        """Whether the model predicts values, rather than what a user will take up."""
        if self.model == "fm":
            return self.fm.task == "regression"
        return self.factorization is not None and self.factorization.mode == "explicit"

    def to_json(self) -> str:
        """The resolved configuration, as it is stored with the run."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    def shown(self) -> str:
        """What differs from the defaults, for people."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False)

    @property
    def input_path(self) -> str:
        return self.input.path.replace("{ds}", self.ds.isoformat())


def load_config(files: Iterable[str | Path] = (), overrides: Iterable[str] = ()) -> Config:
    """Read the files, lay the overrides over them and check the whole.

    Parameters
    ----------
    files : paths of YAML files; a later one wins, key by key.
    overrides : `dotted.key=value` strings; the value is read as YAML.

    Raises
    ------
    ConfigError
        A file is missing or no YAML mapping; a key is unknown; a value has the wrong type or range.
    """
    merged: dict[str, Any] = {}
    for file in files:
        _merge(merged, _read_yaml(Path(file)))
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"argument {override!r} is not key=value, for example als.rank=64")
        try:
            value = yaml.safe_load(text) if text.strip() else None
        except (yaml.YAMLError, ValueError):  # such as a day that no calendar has: the key's own check will say so
            value = text
        _merge(merged, _nest(key.strip().split("."), value))
    return parse_config(merged)


def parse_config(values: Mapping[str, Any]) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"configuration file {path} is not YAML: {' '.join(str(error).split())}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"configuration file {path}: expected `key: value` lines, found a {type(loaded).__name__}")
    return loaded


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _explain(error: ValidationError) -> str:
    return "; ".join(_explain_one(e) for e in error.errors())


def _explain_one(e: Any) -> str:
    loc = [str(part) for part in e["loc"]]
    key = ".".join(loc)
    if e["type"] == "extra_forbidden":
        near = difflib.get_close_matches(loc[-1], known := _known_keys(loc[:-1]), n=1)
        hint = f"did you mean {'.'.join([*loc[:-1], near[0]])}?" if near else f"known here: {', '.join(known)}"
        return f"unknown configuration key {key}: {hint}"
    if e["type"] == "missing":
        return f"configuration key {key} is missing: set it in a --config file or as {key}=…"
    message = e["msg"].removeprefix("Value error, ")
    if not key:
        return f"configuration: {message}"
    shown = repr(e.get("input"))
    shown = "" if isinstance(e.get("input"), dict) else f"={shown if len(shown) < 80 else shown[:77] + '…'}"
    return f"configuration key {key}{shown}: {message[0].lower() + message[1:]}"


def _known_keys(loc: list[str]) -> list[str]:
    section: Any = Config
    for part in loc:
        field = section.model_fields[part].annotation
        options = [field, *getattr(field, "__args__", ())]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(section.model_fields)
