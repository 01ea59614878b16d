"""What comes in: the input's files and columns, the rules of cleaning, and what counts as a positive."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sparkcf.config.section import NonNegative, Positive, Section, Share


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
