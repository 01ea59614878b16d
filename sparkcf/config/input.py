"""Configuration of the input's files and columns, the cleaning rules and the preferences."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sparkcf.config.section import NonNegative, Positive, Section, Share

EPOCHS = ("epoch_s", "epoch_ms", "epoch_us", "epoch_ns")
PATTERN = re.compile(r"('[^']*'|[^A-Za-z']|[GyMLdDahHkKmsSVzOXxZ])+")  # letters that Spark reads, others in quotes


class Columns(Section):
    """Names of the input's columns; a dotted name reaches into a nested JSON object or struct."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    ts: str | None = "ts"  # None: the day of the load at 00:00 UTC, so a (user, item, event) counts once a day
    event: str | None = None  # None: every row is an `input.default_event`
    value: str | None = None  # None: every row has value 1
    context: tuple[str, ...] = ()  # more columns of the moment (device, weather), kept as texts under their own names


class UserColumns(Section):
    user_id: str = "user_id"
    attributes: tuple[str, ...] = ()  # texts (gender, country), kept under their own names
    numbers: tuple[str, ...] = ()  # numeric attributes, kept under their own names


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
    delimiter: str = Field(",", min_length=1)  # CSV only, as the next two
    header: bool = True  # the first line of every file names its columns
    names: tuple[str, ...] = ()  # without a header: the columns in order

    @model_validator(mode="after")
    def _consistent(self) -> AttributesInput:
        check_header(self, "names")
        return self


def check_header(config: AttributesInput | InputConfig, key: str) -> None:
    if config.format == "csv" and not config.header and not config.names:
        raise ValueError(f"header is false: give {key}, the columns in order")


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
    delimiter: str = Field(",", min_length=1)  # CSV only, as the next three
    # A quoted field ends on its line: lines of a field over several lines are rejected. None: quotes are plain text.
    quote: str | None = Field('"', min_length=1, max_length=1)
    header: bool = True  # the first line of every file names its columns
    names: tuple[str, ...] = ()  # without a header: the columns in order
    ts_formats: tuple[str, ...] = Field(
        ("iso8601",), min_length=1
    )  # tried in order: iso8601, epoch_s|ms|us|ns or a Java pattern
    default_event: str = "rating"
    events: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = (
        None  # allowed events and their weights; None: any, weight 1
    )
    value_range: tuple[float, float] | None = None  # inclusive
    users: UsersInput | None = None
    items: ItemsInput | None = None

    @field_validator("ts_formats")
    @classmethod
    def _known_formats(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        for name in formats:
            if name not in ("iso8601", *EPOCHS) and not PATTERN.fullmatch(name):
                known = ", ".join(EPOCHS)
                raise ValueError(f"{name!r} is none of iso8601, {known} or a Java pattern such as dd/MM/yyyy HH:mm")
        return formats

    @model_validator(mode="after")
    def _consistent(self) -> InputConfig:
        check_header(self, "input.names")
        if self.value_range and not self.value_range[0] <= self.value_range[1]:  # so that NaN is refused too
            raise ValueError(f"value_range {list(self.value_range)} is empty: give [low, high]")
        return self


class CleanConfig(Section):
    null_tokens: tuple[str, ...] = ("null", "NULL", "None")  # ids that stand for "no id"
    max_id_length: Positive = 256
    fold_case: bool = False  # ids to lower case
    normalize_unicode: bool = False  # ids: compatibility characters to plain ones, zero-width ones away
    earliest: dt.datetime = dt.datetime(1990, 1, 1)  # UTC; an older timestamp is taken for a fault
    future_tolerance_hours: NonNegative = 0.0  # beyond the end of the logical date (UTC)
    # Events are counted in one input, after exact duplicates are dropped.
    # A user with more is a bot. auto: 10,000, or 50 times the 99th percentile of the users' counts where that is more.
    max_events_per_user: int | Literal["auto"] = "auto"
    min_events_per_user: Positive = 1
    min_events_per_item: Positive = 1  # counted without the users who are rejected
    # once: users below their minimum go, then items below theirs. until_stable: again, until nothing changes.
    minimum: Literal["once", "until_stable"] = "once"
    max_quarantined_share: Share = 0.5  # above it the input is refused as a whole

    @field_validator("max_events_per_user", mode="plain")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError("a whole number from 1, or auto, is needed")
        return value


class PreferenceConfig(Section):
    """How interactions become the weight of a (user, item) pair."""

    positive_from: float | None = None  # implicit models and ranking measures: a value from here up is a positive
    # Of a positive: 1, its value, its event's weight (input.events), each summed over a pair's events, or the logarithm
    # of 1 plus the sum of its values (play counts). Of a rating (explicit): 1, or its event's.
    weight: Literal["one", "value", "event", "log"] = "one"
    max_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # of a pair; None: no limit
