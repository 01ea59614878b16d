"""The whole configuration, except for the models' sections (see `sparkcf.config.models`)."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sparkcf.config.input import CleanConfig, InputConfig, ItemColumns, PreferenceConfig
from sparkcf.config.observe import LogConfig, ObserveConfig, ReportConfig
from sparkcf.config.rerank import RerankConfig
from sparkcf.config.section import ModelSection, Positive, Section, Share
from sparkcf.errors import ConfigError
from sparkcf.redact import redacted_values

RATING_MEASURES = ("rmse", "mae")
MODEL_NAME = r"^[a-z][a-z0-9_]{0,39}$"  # names a table partition and a key of the configuration


def ids_as_text(value: Any) -> Any:
    """Ids that YAML reads as numbers are texts."""
    if not isinstance(value, list | tuple):
        return value
    return [v if isinstance(v, list | dict) else str(v) for v in value]


class LakeConfig(Section):
    root: Annotated[str, Field(min_length=1)] = "./lake"  # a folder or a file:, s3a:, abfss:, hdfs: address


class TrainConfig(Section):
    warm_start: bool = False  # start from the published run's factors if model and rank agree; see `als.tolerance`
    again: bool = False  # train a day once more whose published run has the same inputs and settings
    window_days: Positive | None = None  # days up to the end of `ds` whose events train; None: all
    progress: str | None = None  # folder of checkpoints, removed when a run ends; None: _progress under lake.root


class EvaluationConfig(Section):
    # q1: strong, q2: weak generalisation, q3: ratings, q4: by time. auto: as the published run, else q4 if the held-out
    # part is large enough, else q2
    protocol: Literal["auto", "q1", "q2", "q3", "q4"] = "auto"
    holdout_share: Annotated[float, Field(gt=0, lt=1)] = (
        0.1  # held-out share of users (q1), of a user's items (q2), of pairs (q3), of events (q4)
    )
    foldin_share: Annotated[float, Field(gt=0, lt=1)] = 0.8  # q1: share of a held-out user's items that is folded in
    min_user_items: Positive = 5  # q1, q2: users with fewer positives are left out
    ks: tuple[Positive, ...] = (10, 20, 50, 100)
    bootstrap: Annotated[int, Field(ge=0, le=10_000)] = 200  # replicates for the 95 % bounds


class TopKConfig(Section):
    k: Positive = 20
    exclude_seen: bool = True
    users: tuple[str, ...] = ()  # only these users; empty: all
    # A table (csv, parquet, delta) whose item_ids, normalized as a load does, are never recommended.
    ineligible: str | None = None
    categories: tuple[str, ...] = ()  # only items of one of these; empty: all
    exclude_categories: tuple[str, ...] = ()
    similar_items: Annotated[int, Field(ge=0)] = 20  # neighbours of each item; 0: none
    concepts: bool = False  # name the concept behind an item as its reason, for a model with concepts
    reasons: bool = False  # say as an item's reason which item of the user, or which concept, speaks most for it

    @field_validator("users", mode="before")
    @classmethod
    def _ids_are_text(cls, value: Any) -> Any:
        return ids_as_text(value)


class PredictConfig(Section):
    path: str | None = None  # a table (csv, parquet, delta) of pairs to predict, with columns user_id and item_id
    # levels of the quantiles that are written, for a model that predicts a distribution
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.5, 0.9)


class GateConfig(Section):
    # auto: rmse for protocol q3, else ndcg_at_k
    metric: Literal[
        "auto",
        "ndcg_at_k",
        "recall_at_k",
        "precision_at_k",
        "map_at_k",
        "mrr_at_k",
        "hit_rate_at_k",
        "rmse",
        "mae",
    ] = "auto"
    at: Positive = 100  # k of a measure of lists
    max_fall: Share = 0.1  # largest relative fall below the published run's figure; 1: any fall
    allow_below_popularity: bool = False  # publish a model even if it is worse than the baseline
    min_user_coverage: Share = 0.5  # least share of users with a list by the model
    max_fallback_share: Share = 1.0


class CompareConfig(Section):
    # compare: the YAML file of every model, which sets `model` and parameters; the others are compared with the first
    files: tuple[Annotated[str, Field(min_length=1)], ...] = ()


class TuneConfig(Section):
    space: str | None = None  # tune: the YAML file of the search space, such as conf/tune/als.yaml
    trials: Positive = 20  # in all, with those of an interrupted study
    # Trials that are drawn together, from the results of those before, and run at once as far as there are task slots
    parallel: Annotated[int, Field(ge=1, le=64)] = 4
    sampler: Literal["tpe", "random"] = "tpe"  # of Optuna
    pruner: Literal["none", "median", "halving"] = "median"  # of Optuna; stops trials after part of their sweeps
    folder: Annotated[str, Field(min_length=1)] = "./studies"  # a local folder of the studies' SQLite files
    winner: str | None = None  # the YAML file to write the best parameters to; None: tuned-MODEL.yaml
    overwrite: bool = False  # replace a file of that name
    max_pairs: Positive = 20_000_000  # most pairs that a trial is fitted to as arrays in one task; more: on Spark


class ForgetConfig(Section):
    # ids of the users to forget; neither stored nor printed
    users: Annotated[tuple[str, ...], Field(exclude=True)] = ()
    path: str | None = None  # a table (csv, parquet, delta) with a column user_id of more users to forget

    @field_validator("users", mode="before")
    @classmethod
    def _ids_are_text(cls, value: Any) -> Any:
        return ids_as_text(value)


class MaintainConfig(Section):
    keep_published: Positive = 7  # published runs of every model that can be rolled back to
    keep_days: Positive = 14  # days that other runs, and packed rows, stay
    progress_days: Positive = 3  # days that checkpoints stay which no run has changed
    vacuum_hours: Annotated[int, Field(ge=0)] = (
        168  # files of earlier table versions stay, or as long as kept runs need
    )
    purge_hours: Annotated[int, Field(ge=0)] = 24  # hours after a forget until all files with its users go


class SparkConfig(Section):
    app_name: str = "sparkcf"
    log_level: Literal["OFF", "ERROR", "WARN", "INFO"] = "ERROR"


class Config(Section):
    """Every key except the models' parameters: `load.config_class` adds a section for each model."""

    ds: dt.date  # the logical date: never taken from the clock
    input: InputConfig
    lake: LakeConfig = LakeConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    model: str = Field("als", pattern=MODEL_NAME)
    models: tuple[Annotated[str, Field(pattern=MODEL_NAME)], ...] = ()  # nightly: all of these; empty: `model`
    models_at_once: Positive = (
        1  # nightly: of `models`, which share the task slots and the memory; 1: one after another
    )
    night: Literal["train", "fold_in"] = "train"  # nightly: train, or solve users with the published items fixed
    # The run of a job. None: evaluate, recommend, publish: the newest unpublished; fold_in, predict: the published run.
    run_id: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,80}$")
    clean: CleanConfig = CleanConfig()
    preference: PreferenceConfig = PreferenceConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    topk: TopKConfig = TopKConfig()
    rerank: RerankConfig = RerankConfig()
    predict: PredictConfig = PredictConfig()
    gate: GateConfig = GateConfig()
    compare: CompareConfig = CompareConfig()
    tune: TuneConfig = TuneConfig()
    forget: ForgetConfig = ForgetConfig()
    maintain: MaintainConfig = MaintainConfig()
    spark: SparkConfig = SparkConfig()
    log: LogConfig = LogConfig()
    observe: ObserveConfig = ObserveConfig()
    report: ReportConfig = ReportConfig()

    @field_validator("ds", mode="before")
    @classmethod
    def _a_day_is_no_number(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            raise ValueError("expected a day such as 2024-01-31, not a number")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        protocol, metric = self.evaluation.protocol, self.gate.metric
        of_ratings = metric in RATING_MEASURES
        if metric != "auto" and of_ratings != (protocol == "q3"):
            others = "q3 alone measures" if of_ratings else "q3 does not measure"
            raise ValueError(f"gate.metric={metric} and evaluation.protocol={protocol}: {others} it; set one of them")
        if protocol != "q3" and self.gate.at not in self.evaluation.ks:
            raise ValueError(f"gate.at={self.gate.at} is not among evaluation.ks={list(self.evaluation.ks)}")
        if self.input.items is not None:
            self._check_attributes(self.input.items.columns)
        if len(set(self.models)) < len(self.models):
            raise ValueError(f"models={list(self.models)} names a model twice: name each once")
        return self

    def _check_attributes(self, columns: ItemColumns) -> None:
        """Refuse rules about attributes of items that the input does not bring."""
        brought = [*(["categories"] if columns.categories else []), *columns.attributes]
        for key, name in self.rerank.named():
            if name not in brought:
                raise ValueError(
                    f"{key} reads {name!r}, which input.items.columns does not bring: "
                    f"there are {', '.join(brought) or 'no texts'}"
                )
        times = ["first_event", *columns.attributes, *columns.numbers]
        if self.rerank.fresh_from not in times:
            raise ValueError(
                f"rerank.fresh_from={self.rerank.fresh_from}: input.items.columns brings no such text or number: "
                f"there are {', '.join(times)}"
            )

    @property
    def params(self) -> ModelSection:
        """The parameters of the model."""
        section = getattr(self, self.model)
        assert isinstance(section, ModelSection)
        return section

    def gate_measure(self) -> tuple[str, int | None]:
        """The measure that the gate compares, and its k; None for a measure of predicted ratings."""
        metric = self.gate.metric
        if metric == "auto":
            metric = "rmse" if self.evaluation.protocol == "q3" else "ndcg_at_k"
        return metric, None if metric in RATING_MEASURES else self.gate.at

    def with_protocol(self, protocol: str) -> Self:
        return self.model_copy(update={"evaluation": self.evaluation.model_copy(update={"protocol": protocol})})

    def shaping(self) -> dict[str, Any]:
        """All settings that change a fit of the same data. A stored run is always used with its own values of them."""
        return {
            "seed": self.seed,
            "preference": self.preference.model_dump(mode="json"),
            "input.events": self.input.events,
            "train.window_days": self.train.window_days,
            self.model: self.params.model_dump(mode="json"),
        }

    def with_shaping(self, stored: Mapping[str, Any]) -> Self:
        """This configuration with the `shaping` settings of a stored configuration (`to_json`).

        Raises ConfigError if the stored parameters are no longer valid.
        """
        try:
            own = {
                "seed": int(stored["seed"]),
                "preference": PreferenceConfig.model_validate(stored["preference"]),
                "input": self.input.model_copy(update={"events": stored["input"]["events"]}),
                "train": self.train.model_copy(update={"window_days": stored["train"].get("window_days")}),
                self.model: type(self.params).model_validate(stored[self.model]),
            }
        except (KeyError, TypeError, ValueError) as error:  # pydantic's ValidationError is a ValueError
            raise ConfigError(" ".join(str(error).split())) from None
        return self.model_copy(update=own)

    def to_json(self) -> str:
        """The resolved configuration as JSON, which is stored with the run; without credentials."""
        return json.dumps(redacted_values(self.model_dump(mode="json")), sort_keys=True)

    def shown(self) -> str:
        """The values that differ from the defaults, as JSON; without credentials."""
        return json.dumps(redacted_values(self.model_dump(mode="json", exclude_defaults=True)), ensure_ascii=False)

    @property
    def input_path(self) -> str:
        return self.input.path.replace("{ds}", self.ds.isoformat())
