"""Commands about the configuration: what a key is, and what sets it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkcf.cli.app import FormatOption, app
from sparkcf.cli.show import Record, print_lines, show

if TYPE_CHECKING:
    from sparkcf.config.load import Source
    from sparkcf.config.reference import Key

COLUMNS = ["key", "type", "required", "default", "value", "set_by", "read_by", "meaning"]
NOT_SHOWN = "set, not shown"
DEFAULT = "default"

group = typer.Typer(help="Ask about the configuration's keys.")
app.add_typer(group, name="config")


@group.command("explain")
def explain_key(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="A key such as als.rank, or a section such as als.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings as a job takes them.")
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", metavar="FILE", help="Also show the value in force; may be repeated."),
    ] = None,
    form: FormatOption = "table",
) -> None:
    """Show a key's type, bounds, default, meaning and readers, or the keys of a section."""
    from sparkcf.config.load import check_incomplete, merge_sources, read_sources
    from sparkcf.config.reference import find_keys

    settings = list(overrides or ())
    if key is not None and "=" in key:  # a setting explains its key
        settings.insert(0, key)
        key = key.partition("=")[0]
    if key is None:
        show(_sections(), ["section", "keys", "read_by"], form)
        return
    keys = find_keys(key)
    sources = read_sources(config or (), settings)
    values = merge_sources(sources)
    check_incomplete(values)
    records = [_record(one, sources, values) for one in keys]
    if form != "table":
        show(records, COLUMNS, form)
    elif len(keys) == 1:
        print_lines(_lines(records[0], bool(sources)))
    else:
        shown = [
            {"key": record["key"], "value": _text(record), "meaning": record["meaning"]}
            | ({"set by": record["set_by"]} if sources else {})
            for record in records
        ]
        show(shown, ["key", "value", *(["set by"] if sources else []), "meaning"], form)


def _sections() -> list[Record]:
    """Every section with the number of its keys; those that have no section are named one by one."""
    from sparkcf.config.load import model_names
    from sparkcf.config.reference import all_keys

    counts: dict[str, int] = {}
    readers: dict[str, str] = {}
    for name, key in all_keys().items():
        head = name.partition(".")[0]
        counts[head] = counts.get(head, 0) + 1
        readers.setdefault(head, key.read_by)
    others = [name for name in model_names() if name not in counts]
    records: list[Record] = [{"section": name, "keys": n, "read_by": readers[name]} for name, n in counts.items()]
    return records + [{"section": name, "keys": None, "read_by": f"model {name}"} for name in others]


def _record(key: Key, sources: list[Source], values: dict[str, Any]) -> Record:
    """All about a key; `value` is that in force, `set_by` the file that sets it, the command line or the default."""
    from sparkcf.redact import redacted_values

    path = key.name.partition("[]")[0]  # a list is set as a whole
    setter = next((source.name for source in reversed(sources) if source.sets(path)), DEFAULT)
    value = key.default if setter == DEFAULT else _value(values, key.name.split("."))
    hidden = key.secret and setter != DEFAULT and value is not None
    return {
        "key": key.name,
        "type": key.type.replace("`", ""),
        "required": key.required,
        "default": key.default,
        "value": NOT_SHOWN if hidden else redacted_values(value),
        "set_by": setter,
        "read_by": key.read_by,
        "meaning": key.meaning.replace("`", ""),
    }


def _value(values: Any, parts: list[str]) -> Any:
    """The value at a dotted name; of `list[].key` the values in all entries. None where a section above is not set."""
    for place, part in enumerate(parts):
        if not isinstance(values, dict):
            return None
        values = values.get(part.removesuffix("[]"))
        if part.endswith("[]"):
            return [_value(entry, parts[place + 1 :]) for entry in values or ()]
    return values


def _lines(record: Record, asked: bool) -> list[str]:
    facts = {
        record["key"]: record["meaning"],
        "type": record["type"],
        "default": "none: it must be set" if record["required"] else _json(record["default"]),
        "read by": record["read_by"],
    }
    if asked:
        facts["in force"] = f"{_text(record)} ({record['set_by']})"
    width = max(map(len, facts))
    return [f"{name:<{width}}  {text}" for name, text in facts.items()]


def _text(record: Record) -> str:
    if record["required"] and record["set_by"] == DEFAULT:
        return "must be set"
    return _json(record["value"])


def _json(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
