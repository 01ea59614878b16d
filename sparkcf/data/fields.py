"""Type the text fields of a raw row: ids, values and times, as Spark SQL expressions."""

from __future__ import annotations

import datetime as dt
import unicodedata
from functools import cache

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparkcf.config.input import CleanConfig, InputConfig

NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
ISO8601 = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?)?( ?(Z|UTC|[+-]\d{2}(:?\d{2})?))?$"
NO_SECONDS = r"^(.{10}[T ]\d{2}:\d{2})( ?[ZU+-].*)$"
EPOCH_MICROS = {"epoch_s": 10**6, "epoch_ms": 10**3, "epoch_us": 1, "epoch_ns": None}
FARTHEST = 250_000_000_000_000_000  # microseconds: the year 9892; times beyond are set to this bound
WHITE_SPACE = "".join(c for c in map(chr, range(0x10000)) if unicodedata.category(c) in ("Zs", "Zl", "Zp", "Cc"))
ZERO_WIDTH = "\ufeff\u200b\u200c\u200d\u2060\u00ad"


def constants(input_config: InputConfig, ds: dt.date) -> dict[str, Column]:
    """Columns that are the same in every row, since the input has none for them."""
    columns = input_config.columns
    found = {
        "event": F.lit(input_config.default_event),
        "value": F.lit(1.0),
        "ts": utc(dt.datetime.combine(ds, dt.time())),
        "context": F.array().cast("array<string>"),
    }
    return {name: column for name, column in found.items() if not getattr(columns, name)}


def parse(raw: DataFrame, input_config: InputConfig, config: CleanConfig, ds: dt.date) -> DataFrame:
    """Type the text fields: ids normalised, `value` double, `ts` timestamp; the texts stay as value_text, ts_text."""
    value, texts = trimmed("value"), F.transform("context", lambda text: F.nullif(without_white_space(text), F.lit("")))
    typed = {
        "event": trimmed("event"),
        "value": F.when(value.rlike(NUMBER), value.cast("double")),
        "ts": parsed_timestamp(trimmed("ts"), input_config.ts_formats),
        "context": texts,
    } | constants(input_config, ds)
    return raw.select(
        "raw",
        "source",
        "block",
        "line",
        "header",
        "malformed",
        "quote",
        normalized_id(F.col("user_id"), config).alias("user_id"),
        normalized_id(F.col("item_id"), config).alias("item_id"),
        (value if input_config.columns.value else F.lit("1")).alias("value_text"),
        trimmed("ts").alias("ts_text"),
        *(column.alias(name) for name, column in typed.items()),
    )


def trimmed(name: str) -> Column:
    return without_white_space(F.col(name))


def without_white_space(text: Column) -> Column:
    """The text without white space at its ends. Most texts begin and end with a visible ASCII character: these pass."""
    last = F.substring(text, -1, 1)
    visible = (text >= "!") & (text < "\x7f") & (last >= "!") & (last < "\x7f")
    return F.when(visible, text).otherwise(F.btrim(text, F.lit(WHITE_SPACE)))


def normalized_id(text: Column, config: CleanConfig) -> Column:
    """An id trimmed of white space, null tokens as null; unicode and case are folded if configured."""
    if config.normalize_unicode:
        plain, compatible = _compatibility_characters()
        folded = F.translate(text, compatible + ZERO_WIDTH, plain)
        text = F.when(text.rlike(r"[^\x00-\x7F]"), folded).otherwise(text)
    text = without_white_space(text)
    absent = text.isin("", *config.null_tokens)
    if config.fold_case:
        text = F.lower(text)
    return F.when(~absent, text)


@cache
def _compatibility_characters() -> tuple[str, str]:
    """Characters of the basic plane that NFKC maps to one other character: (replacements, characters)."""
    pairs = [
        (unicodedata.normalize("NFKC", c), c) for c in map(chr, range(0x80, 0xFFFE)) if not 0xD800 <= ord(c) < 0xE000
    ]
    pairs = [(plain, c) for plain, c in pairs if plain != c and len(plain) == 1]
    return "".join(p for p, _ in pairs), "".join(c for _, c in pairs)


def parsed_timestamp(text: Column, formats: tuple[str, ...]) -> Column:
    """The text parsed by the first format that fits; null if none does. A text without a zone is UTC."""
    return F.coalesce(*(_timestamp(text, name) for name in formats))


def _timestamp(text: Column, name: str) -> Column:
    if name == "iso8601":
        whole = F.regexp_replace(text, NO_SECONDS, "$1:00$2")  # Spark requires seconds before a zone
        return F.when(text.rlike(ISO8601), whole.cast("timestamp"))
    if name in EPOCH_MICROS:
        number = F.when(text.rlike(NUMBER), text.cast("decimal(38,6)"))
        factor = EPOCH_MICROS[name]
        micros = number / 1000 if factor is None else number * factor
        bounded = F.greatest(F.least(micros, F.lit(FARTHEST)), F.lit(-FARTHEST))
        of_any = F.when(micros.isNotNull(), F.timestamp_micros(bounded.cast("long")))
        if factor is None:
            return of_any
        # Most are plain whole numbers, which need no decimals.
        whole = text.cast("long")
        plain = (whole.cast("string") == text) & whole.between(-(FARTHEST // factor), FARTHEST // factor)
        return F.when(plain, F.timestamp_micros(whole * factor)).otherwise(of_any)
    return F.try_to_timestamp(text, F.lit(name))


def utc(moment: dt.datetime) -> Column:
    if moment.tzinfo is not None:
        moment = moment.astimezone(dt.UTC)
    return F.lit(moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")).cast("timestamp")
