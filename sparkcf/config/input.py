"""Configuration of the input's files and columns, the cleaning rules and the preferences."""

from __future__ import annotations

import datetime as dt
import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sparkcf.config.section import NonNegative, Positive, Section, Share

EPOCHS = ("epoch_s", "epoch_ms", "epoch_us", "epoch_ns")
PATTERN = re.compile(r"('[^']*'|[^A-Za-z']|[GyMLdDahHkKmsSVzOXxZ])+")  # Spark's pattern letters, others in quotes


class Columns(Section):
    """Names of the input's columns; a dotted name is a field of a nested JSON object or struct."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    ts: str | None = "ts"  # None: the day of the load at 00:00 UTC, so a (user, item, event) counts once a day
    event: str | None = None  # None: every row is an `input.default_event`
    value: str | None = None  # None: every row has value 1
    context: tuple[str, ...] = ()  # columns of the event's context (device, weather), kept as texts under their names


class UserColumns(Section):
    user_id: str = "user_id"
    attributes: tuple[str, ...] = ()  # texts (gender, country), kept under their names
    numbers: tuple[str, ...] = ()  # numeric attributes, kept under their names


class ItemColumns(Section):
    item_id: str = "item_id"
    title: str | None = None
    categories: str | None = None
    attributes: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()  # precomputed vectors (of an image, a text), kept under their own names


class AttributesInput(Section):
    """A table of the attributes of users or items, joined by their id."""

    path: str
    format: Literal["csv", "jsonl", "parquet", "delta"] = "csv"
    delimiter: str = Field(",", min_length=1)  # this and the next two: CSV only
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
    no_category: tuple[str, ...] = ("(no genres listed)",)  # values that mean "no category"


class InputConfig(Section):
    path: str = Field(..., min_length=1)  # a glob; {ds} is replaced by the logical date; sample:NAME is packaged
    format: Literal["csv", "jsonl", "parquet", "delta"] = "csv"
    columns: Columns = Columns()
    delimiter: str = Field(",", min_length=1)  # this and the next three: CSV only
    # A quoted field must end on its line; lines of a field over several lines are rejected. None: quotes are text.
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
        low, high = self.value_range or (0.0, 1.0)
        if not low <= high or low == math.inf or high == -math.inf:  # in this form NaN is refused too
            raise ValueError(f"value_range {[low, high]} is empty: give [low, high]")
        return self


class CleanConfig(Section):
    null_tokens: tuple[str, ...] = ("null", "NULL", "None")  # ids that mean "no id"
    max_id_length: Positive = 256
    fold_case: bool = False  # convert ids to lower case
    normalize_unicode: bool = False  # ids: replace compatibility characters, remove zero-width characters
    earliest: dt.datetime = dt.datetime(1990, 1, 1)  # UTC; rows with an older timestamp go to quarantine
    future_tolerance_hours: NonNegative = 0.0  # beyond the end of the logical date (UTC)
    # Events of a user in one input, without exact duplicates; users with more (bots) go to quarantine. auto: the larger
    # of 10,000 and 50 times the 99th percentile of events per user.
    max_events_per_user: int | Literal["auto"] = "auto"
    min_events_per_user: Positive = 1
    min_events_per_item: Positive = 1  # items with fewer events of the remaining users go to quarantine
    # once: reject users below their minimum, then items below theirs. until_stable: repeat until nothing changes.
    minimum: Literal["once", "until_stable"] = "once"
    max_quarantined_share: Share = 0.5  # above this share of rejected rows the whole input is refused

    @field_validator("max_events_per_user", mode="plain")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError("a whole number from 1, or auto, is needed")
        return value


class PreferenceConfig(Section):
    """How interactions become the weight of a (user, item) pair."""

    # Implicit models and ranking measures: the least value of a positive; None: all
    positive_from: Annotated[float, Field(allow_inf_nan=False)] | None = None
    # Weight of a positive pair. one: 1; value: the sum of its values; event: the sum of its events' weights
    # (input.events); log: the logarithm of 1 plus the sum of its values (play counts), 0 for a negative sum. Weight of
    # a rating (explicit): that of its event with event, otherwise 1.
    weight: Literal["one", "value", "event", "log"] = "one"
    max_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # of a pair; None: no limit
    # Days in which an event's weight halves, counted back from the end of `ds` (by time: from the cut); None: no decay
    half_life_days: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
