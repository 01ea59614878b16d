"""What the configuration's keys are: type, bounds, default, meaning, and who reads them.

Type, bounds and default come from the pydantic sections, the meaning from the comment beside the field. The generated
reference (docs/configuration.md) and `sparkcf config explain` both show these.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import StringIO
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_jsonable_python

from sparkcf.config.load import config_class
from sparkcf.config.models import SECTIONS
from sparkcf.config.plugins import installed
from sparkcf.errors import ConfigError

EVERY_JOB = ("every job",)
FITS = ("prepare", "train", "evaluate", "fold_in", "compare", "tune")
# The jobs that read a key; the longest name that begins the key counts. A night runs the steps' jobs with their keys.
READ_BY = {
    "ds": EVERY_JOB,
    "lake": EVERY_JOB,
    "spark": EVERY_JOB,
    "log": EVERY_JOB,
    "observe": EVERY_JOB,
    "input": ("clean", "predict"),
    "input.events": ("clean", *FITS),
    "seed": (*FITS, "recommend"),
    "model": (*FITS, "recommend", "predict", "publish", "rollback"),
    "models": ("nightly", "prepare"),
    "models_at_once": ("nightly",),
    "night": ("nightly",),
    "run_id": ("evaluate", "recommend", "predict", "fold_in", "publish", "rollback"),
    "clean": ("clean", "forget", "recommend", "predict"),
    "preference": FITS,
    "train": ("train",),
    "train.window_days": FITS,
    "train.progress": ("train", "evaluate", "compare"),
    "evaluation": ("evaluate", "compare", "tune"),
    "evaluation.protocol": ("evaluate", "compare", "tune", "publish"),
    "topk": ("recommend", "evaluate", "compare"),
    "rerank": ("recommend", "evaluate"),
    "predict": ("predict",),
    "gate": ("publish", "evaluate", "compare", "tune"),
    "compare": ("compare",),
    "tune": ("tune",),
    "forget": ("forget",),
    "maintain": ("maintain",),
    "report": ("nightly",),
}
NEAR = 5  # most names that an error suggests
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
    "FactorizationConfig.form": "the implicit objective: what pairs without an event weigh, see `docs/models/als.md`",
    "FactorizationConfig.rank": "length of a user's and an item's vector",
    "FactorizationConfig.iterations": "sweeps: each solves all users, then all items",
    "FactorizationConfig.regularization": "lambda, the weight of the squared vectors",
    "FactorizationConfig.regularization_exponent": "how the penalty grows with a row's entries; 1: in proportion",
    "ALSConfig.cg_steps": "steps of conjugate gradient for a row in a half-sweep",
    "GradientConfig.learning_rate": "step size of Adam",
    "GradientConfig.epochs": "passes over the training rows, at most",
    "NetConfig.latent_dim": "length of the latent vector",
    "MultVAEConfig.dense_layers": "encoder dense: layers, each of which reads all before it",
    "BiVAEConfig.latent_dim": "length of the latent vectors of users and of items",
    "BiVAEConfig.batch_size": "rows of a side that all processes have together in a step",
    "BiVAEConfig.likelihood": "likelihood of a pair's value given both vectors",
    "DisenGCNConfig.learning_rate": "step size of Adam",
    "MPMAConfig.components": "the factorizations that are mixed",
    "MPMAConfig.rank": "length of a user's and an item's vector in each component",
    "MPMAConfig.sgd_learning_rate": "sgd: step size",
    "MPMAConfig.regularization": "lambda, the weight of the squared vectors",
    "MPMAConfig.user_groups": "groups of users, each with a local factorization",
    "MPMAConfig.item_groups": "groups of items, each with a local factorization",
    "MPMAConfig.temperature": "tempered: the higher, the more alike the components' shares of a rating",
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


@dataclass(frozen=True)
class Key:
    """A key of the configuration.

    name : dotted; `[]` follows the name of a list of sections, such as rerank.caps[].by.
    section, field : where it is declared.
    """

    name: str
    section: type[BaseModel]
    field: str

    @property
    def type(self) -> str:
        """Type and bounds in words; values and patterns stand in backticks."""
        shown = self.section.model_json_schema()["properties"][self.field]
        if not {"type", "anyOf", "$ref", "enum", "const"} & shown.keys():  # a field with a check of its own
            declared: Any = self.section.model_fields[self.field].annotation
            shown = TypeAdapter(declared).json_schema()
        return type_of(shown)

    @property
    def required(self) -> bool:
        return self.section.model_fields[self.field].is_required()

    @property
    def default(self) -> Any:
        """The default as JSON has it; None also for a required key."""
        if self.required:
            return None
        return to_jsonable_python(self.section.model_fields[self.field].get_default(call_default_factory=True))

    @property
    def meaning(self) -> str:
        return comment(self.section, self.field)

    @property
    def secret(self) -> bool:
        """Whether its value may be a secret address or names people, so that it is not shown."""
        return self.name.startswith("observe.") or bool(self.section.model_fields[self.field].exclude)

    @property
    def read_by(self) -> str:
        """The jobs, or the model, that read it."""
        head = self.name.partition(".")[0]
        if head not in READ_BY:
            return f"model {head}"
        found = max((name for name in READ_BY if f"{self.name}.".startswith(f"{name}.")), key=len)
        return ", ".join(READ_BY[found])


def all_keys(plugins: frozenset[str] = frozenset()) -> dict[str, Key]:
    """Every key by its name, those without a section first. `plugins` : other packages' models to include."""
    whole = config_class(plugins)
    sections = sections_of(whole)
    keys = [Key(name, whole, name) for name in whole.model_fields if name not in sections]
    keys += [key for name, section in sections.items() for key in keys_of(name, section)]
    return {key.name: key for key in keys}


def sections_of(whole: type[BaseModel]) -> dict[str, type[BaseModel]]:
    return {name: found for name, field in whole.model_fields.items() if (found := section_of(field.annotation))}


def find_keys(name: str) -> list[Key]:
    """The key of that name, or the keys of the section of that name.

    Raises ConfigError with the nearest names for an unknown one.
    """
    keys = all_keys(frozenset({name.partition(".")[0]} & installed().keys() - SECTIONS.keys()))
    if name in keys and not any(other.startswith(f"{name}[].") for other in keys):
        return [keys[name]]
    inside = [key for other, key in keys.items() if other == name or other.startswith((f"{name}.", f"{name}[]."))]
    if inside:
        return inside
    near = near_names(name, list(keys))
    cure = f"did you mean {', '.join(near)}?" if near else "`sparkcf config explain` lists the sections"
    raise ConfigError(f"unknown configuration key {name}: {cure}")


def near_names(name: str, known: list[str]) -> list[str]:
    """Known names like an unknown one: the whole name, or its last part in any section."""
    head, last = name.partition(".")[0], name.rpartition(".")[2]
    ends = sorted({other.rpartition(".")[2] for other in known})
    meant = difflib.get_close_matches(last, ends, n=2, cutoff=0.75)  # the best first
    found = difflib.get_close_matches(name, [*known, *{other.partition(".")[0] for other in known}], cutoff=0.75)
    found += [other for end in meant for other in known if other.rpartition(".")[2] == end]
    found.sort(key=lambda other: other.partition(".")[0] != head)  # the section that was named comes first
    return list(dict.fromkeys(found))[:NEAR]


def keys_of(prefix: str, section: type[BaseModel]) -> Iterator[Key]:
    """Every key of a section, those of the sections inside it after its own."""
    inside = []
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        several = "[]" if inner is not None and "tuple" in str(field.annotation) else ""
        if inner is None or several or field.default is None:  # a section that may be left out is a key too
            yield Key(f"{prefix}.{name}", section, name)
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


def comment(section: type[BaseModel], name: str) -> str:
    """What a field means: MEANINGS, else the comment above the field and the one behind it, as one text."""
    owner = next(c for c in section.__mro__ if name in inspect.get_annotations(c))
    said = MEANINGS.get(f"{owner.__name__}.{name}") or comments_of(owner).get(name, "")
    return re.sub(r"\bNone\b", "null", said)


@cache
def comments_of(section: type) -> dict[str, str]:
    """The comments of a class's fields by name: whole lines directly above it, then those behind its own lines."""
    try:
        source = textwrap.dedent(inspect.getsource(section))
    except OSError:  # another package's class without its source
        return {}
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
