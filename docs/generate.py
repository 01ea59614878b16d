"""Write the parts of the documents that repeat the code: docs/configuration.md, and the tables in docs/data.md.

    python -m docs.generate

The configuration's keys come from the pydantic sections in sparkcf/config: name, type, bounds, default, and the comment
beside the field. The tables' columns come from sparkcf/lake/schemas.py. `tests/test_documents.py` checks that the
committed files are what this script writes.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import tokenize
from collections.abc import Iterator
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_jsonable_python

from sparkcf.config.load import config_class
from sparkcf.config.models import SECTIONS
from sparkcf.lake.schemas import TABLES

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "docs" / "configuration.md"
DATA = ROOT / "docs" / "data.md"
BEGIN, END = "<!-- Written by python -m docs.generate: begin -->", "<!-- Written by python -m docs.generate: end -->"
# Of fields without a comment in the code, or with one that only makes sense among its neighbours: by class and name.
MEANINGS = {
    "Config.seed": "seed of every random draw",
    "Config.model": "the model that jobs train, evaluate and serve",
    "InputConfig.format": "format of the input's files",
    "InputConfig.delimiter": "CSV: what separates two fields; `\\t` in double quotes is a tab",
    "InputConfig.header": "CSV: the first line of every file names its columns",
    "InputConfig.names": "CSV without a header: the names of the columns, in order",
    "InputConfig.default_event": "kind of every event where `input.columns.event` is null",
    "InputConfig.value_range": "[least, largest] value, both inclusive; rows outside go to quarantine. null: any value",
    "InputConfig.users": "a table of users with attributes; null: none",
    "InputConfig.items": "a table of items with titles and attributes; null: none",
    "Columns.user_id": "name of the column with the user's id",
    "Columns.item_id": "name of the column with the item's id",
    "AttributesInput.path": "path of the table, with wildcards",
    "AttributesInput.format": "format of the table's files",
    "AttributesInput.delimiter": "CSV: what separates two fields",
    "AttributesInput.header": "CSV: the first line of every file names its columns",
    "AttributesInput.names": "CSV without a header: the names of the columns, in order",
    "UserColumns.user_id": "name of the column with the user's id",
    "UserColumns.numbers": "columns of numbers (age), kept under their own names",
    "ItemColumns.item_id": "name of the column with the item's id",
    "ItemColumns.title": "name of the column with the title that queries show",
    "ItemColumns.categories": "name of the column with the item's categories, several in one text",
    "ItemColumns.attributes": "columns of texts (brand, language), kept under their own names",
    "ItemColumns.numbers": "columns of numbers (year, price), kept under their own names",
    "ItemsInput.category_separator": "what separates two categories in the text",
    "CleanConfig.max_id_length": "characters of an id; longer ones go to quarantine",
    "CleanConfig.min_events_per_user": "users with fewer events go to quarantine",
    "EvaluationConfig.ks": "lengths k of the lists that are measured",
    "TopKConfig.k": "items in a user's list",
    "TopKConfig.exclude_seen": "leave out the items that the user has interacted with",
    "TopKConfig.exclude_categories": "no items of these categories",
    "RerankConfig.exclude": "items that are never listed, with the keys `rerank.exclude[]` below",
    "RerankConfig.boosts": "changes of scores, with the keys `rerank.boosts[]` below",
    "RerankConfig.caps": "most items of a value in a list, with the keys `rerank.caps[]` below",
    "BlendConfig.members": "the models whose lists are merged, with the keys `blend.members[]` below",
    "GateConfig.metric": "the measure that the gate compares",
    "GateConfig.max_fallback_share": "users with the popularity fallback, among all",
    "SparkConfig.app_name": "name of the application in Spark's UI",
    "SparkConfig.log_level": "log level of Spark",
    "FactorizationConfig.mode": "implicit: rank items by what users have; explicit: predict the value of a pair",
    "FactorizationConfig.rank": "length of a user's and an item's vector",
    "FactorizationConfig.iterations": "sweeps: each solves all users, then all items",
    "FactorizationConfig.regularization": "lambda, the weight of the squared vectors",
    "FactorizationConfig.regularization_exponent": "how the penalty grows with a row's entries; 1: in proportion",
    "ALSConfig.cg_steps": "steps of conjugate gradient for a row in a half-sweep",
    "GradientConfig.learning_rate": "step size of Adam",
    "GradientConfig.epochs": "passes over the training rows, at most",
    "NetConfig.latent_dim": "length of the latent vector",
    "MultVAEConfig.likelihood": "likelihood of a user's row given the logits",
    "MultDAEConfig.likelihood": "likelihood of a user's row given the logits",
    "MultDAEConfig.hidden": "widths between a row and the latent vector; the decoder has them reversed",
    "SGDConfig.epochs": "passes over the training rows, at most",
    "SGDConfig.batch_size": "rows that all workers have together in a step",
    "SGDConfig.learning_rate": "step size of Adam",
    "FMField.name": "name of the field, for `fm.pairs` and `fm.context`",
    "FMConfig.fields": "the groups of features, each with the keys `fm.fields[]` below",
    "FMConfig.learner": "mcmc: samples, nothing to tune; als: one optimum; sgd: mini-batches",
    "FMConfig.rank": "length of a feature's vector",
    "FMConfig.iterations": "sweeps over all features",
    "FMConfig.init_sd": "standard deviation of the initial vectors' entries",
}
INTRODUCTION = """\
# Configuration

<!-- Written by python -m docs.generate from sparkcf/config. Change the comment beside the field there. -->

Every key, its type, its default and what it means. A key is given in a YAML file (`--config FILE`, repeatable) or on
the command line as `key=value`, by its dotted name: `als.rank=128`, `input.columns.value=rating`. The command line wins
over files, a later file over an earlier one, and files over the defaults below. The value on the command line is read
as YAML: `topk.categories='[Comedy, Drama]'`, `input.columns.ts=null`.

An unknown key, a wrong type or a value out of range is an error that names the key, before Spark starts. A job prints
what differs from the defaults when it starts, and stores the whole configuration with its run. `--dry-run` checks a
configuration and ends.

A model's parameters are used where `model` (or `models`) names it; the others are checked and left alone. A model of
another package ([models/your-own.md](models/your-own.md)) brings a section of its own.
"""


def documents() -> dict[Path, str]:
    """The whole text of every file that has generated parts."""
    before, _, rest = DATA.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    return {CONFIGURATION: configuration(), DATA: f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"}


def configuration() -> str:
    """The reference of all keys, one table a section."""
    whole = config_class()
    sections = {name: found for name, field in whole.model_fields.items() if (found := section_of(field.annotation))}
    parts = [INTRODUCTION]
    plain = [name for name in whole.model_fields if name not in sections]
    parts.append("## The night\n\n" + key_table([(name, whole, name) for name in plain]))
    for name, section in sections.items():
        said = own_docstring(section)
        title = f"## `{name}`" + (" (a model)" if name in SECTIONS else "")
        parts.append(f"{title}\n\n" + (f"{said}\n\n" if said else "") + key_table(list(keys_of(name, section))))
    return "\n".join(parts)


def keys_of(prefix: str, section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel], str]]:
    """Dotted name, class and field of every key of a section, those of the sections inside it after its own."""
    inside = []
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        several = "[]" if inner is not None and "tuple" in str(field.annotation) else ""
        if inner is None or several or field.default is None:  # a section that may be left out is a key too
            yield f"{prefix}.{name}", section, name
        if inner is not None:
            inside.append((f"{prefix}.{name}{several}", inner))
    for name, inner in inside:
        yield from keys_of(name, inner)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone, optionally or in a list."""
    for found in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    return None


def key_table(keys: list[tuple[str, type[BaseModel], str]]) -> str:
    lines = ["| key | type and bounds | default | meaning |", "|---|---|---|---|"]
    for key, section, name in keys:
        schema = section.model_json_schema()
        shown = schema["properties"][name]
        if not {"type", "anyOf", "$ref", "enum", "const"} & shown.keys():  # a field with a check of its own
            shown = TypeAdapter(section.model_fields[name].annotation).json_schema()
        described = type_of(shown)
        lines.append(
            f"| `{key}` | {cell(described)} | {cell(default_of(section, name))} | {cell(comment(section, name))} |"
        )
    return "\n".join(lines) + "\n"


def type_of(schema: dict[str, Any]) -> str:
    """A JSON schema's type and bounds, in words."""
    if "anyOf" in schema:
        return " or ".join(type_of(one) for one in schema["anyOf"])
    if "$ref" in schema:
        return "section"
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "null":
        return "`null`"
    if kind == "array":
        if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: {type_of(schema['prefixItems'][0])}"
        return f"list of {type_of(schema['items'])}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return "mapping" if not isinstance(values, dict) else f"mapping to {type_of(values)}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}
    found = {"date": "day", "date-time": "timestamp"}.get(schema.get("format", ""), words.get(str(kind), str(kind)))
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    said = [f"{sign} {schema[bound]:,}".removesuffix(".0") for bound, sign in bounds.items() if bound in schema]
    if kind == "string" and schema.get("maxLength") == 1:
        said.append("one character")
    if "pattern" in schema:
        said.append(f"`{schema['pattern']}`")
    return " ".join([found, ", ".join(said)]).strip()


def default_of(section: type[BaseModel], name: str) -> str:
    field = section.model_fields[name]
    if field.is_required():
        return "**required**"
    value = to_jsonable_python(field.get_default(call_default_factory=True))
    if value == "":
        return "empty"
    if name == "fields":
        return "user, item"
    return f"`{json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value}`"


def comment(section: type[BaseModel], name: str) -> str:
    """What a field means: MEANINGS, else the comment above the field and the one behind it, as one text."""
    owner = next(c for c in section.__mro__ if name in inspect.get_annotations(c))
    said = MEANINGS.get(f"{owner.__name__}.{name}") or comments_of(owner).get(name, "")
    return re.sub(r"\bNone\b", "null", said)


@cache
def comments_of(section: type) -> dict[str, str]:
    """The comments of a class's fields by name: whole lines directly above it, then those behind its own lines."""
    source = textwrap.dedent(inspect.getsource(section))
    found: dict[int, str] = {}
    whole: set[int] = set()
    for token in tokenize.generate_tokens(StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            found[token.start[0]] = token.string.removeprefix("#").strip()
            if token.line.strip() == token.string:
                whole.add(token.start[0])
    texts = {}
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while first - 1 in whole:
                first -= 1
            assert node.end_lineno is not None
            lines = range(first, node.end_lineno + 1)
            texts[node.target.id] = " ".join(found[line] for line in lines if line in found)
    return texts


def own_docstring(section: type[BaseModel]) -> str:
    return inspect.cleandoc(section.__dict__.get("__doc__") or "")


def tables() -> str:
    """Every table of the lake with its columns."""
    parts = []
    for table in TABLES.values():
        facts = [f"One row for each ({', '.join(f'`{name}`' for name in table.key)})."] if table.key else []
        if table.partition_by:
            facts.append(f"Partitioned by {', '.join(f'`{name}`' for name in table.partition_by)}.")
        lines = [f"### `{table.name}`", "", f"{table.comment[0].upper()}{table.comment[1:]}. {' '.join(facts)}".strip()]
        lines += ["", "| column | type | what it is |", "|---|---|---|"]
        for field in table.schema.fields:
            kind = field.dataType.simpleString() + (" or null" if field.nullable else "")
            lines.append(f"| `{field.name}` | {cell(kind)} | {cell(field.metadata['comment'])} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def main() -> None:
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")


if __name__ == "__main__":
    main()
