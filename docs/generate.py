"""Write what repeats the code: docs/configuration.md, docs/reference.md, and the tables in docs/data.md.

    python -m docs.generate

The configuration's keys come from sparkcf/config/reference.py, which reads them from the pydantic sections and the
comments beside their fields; the reference of Python from signatures and docstrings; the tables' columns from
sparkcf/lake/schemas.py. `tests/test_documents.py` checks that the committed files are what this script writes.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import sparkcf
from sparkcf.config.load import config_class
from sparkcf.config.models import SECTIONS
from sparkcf.config.reference import Key, all_keys, keys_of, own_docstring, sections_of
from sparkcf.lake.schemas import TABLES

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "docs" / "configuration.md"
DATA = ROOT / "docs" / "data.md"
REFERENCE = ROOT / "docs" / "reference.md"
BEGIN, END = "<!-- Written by python -m docs.generate: begin -->", "<!-- Written by python -m docs.generate: end -->"
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

`sparkcf config explain` shows the same in a terminal: a key or the keys of a section, the jobs that read it, and, with
the files and settings that a job would get, the value in force and what sets it.

```sh
sparkcf config explain als.rank
sparkcf config explain gate --config conf/nightly.yaml --config mine.yaml gate.max_fall=0.05
```

A model's parameters are used where `model` (or `models`) names it; the others are checked and left alone. A model of
another package ([models/your-own.md](models/your-own.md)) brings a section of its own.
"""

WIDTH = 100  # of a signature on one line
ENTRY = re.compile(r"\*{0,2}\w+(, \w+)*")  # names before " : " in a docstring
ABOUT_PYTHON = """\
# Reference of the Python package

<!-- Written by python -m docs.generate from the docstrings in sparkcf/lake/query.py and sparkcf/local. -->

What `import sparkcf` has. [In Python, without Spark](python.md) shows models on frames, and [serving](serving.md) how
published lists are read.
"""


def documents() -> dict[Path, str]:
    """The whole text of every file that has generated parts."""
    before, _, rest = DATA.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    whole = f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"
    return {CONFIGURATION: configuration(), DATA: whole, REFERENCE: reference()}


def configuration() -> str:
    """The reference of all keys, one table a section."""
    sections = sections_of(config_class())
    plain = [key for name, key in all_keys().items() if "." not in name]
    parts = [INTRODUCTION, "## The night\n\n" + key_table(plain)]
    for name, section in sections.items():
        said = own_docstring(section)
        title = f"## `{name}`" + (" (a model)" if name in SECTIONS else "")
        parts.append(f"{title}\n\n" + (f"{said}\n\n" if said else "") + key_table(keys_of(name, section)))
    return "\n".join(parts)


def key_table(keys: Iterable[Key]) -> str:
    lines = ["| key | type and bounds | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{key.name}` | {cell(key.type)} | {cell(default_of(key))} | {cell(key.meaning)} |" for key in keys]
    return "\n".join(lines) + "\n"


def default_of(key: Key) -> str:
    if key.required:
        return "**required**"
    value = key.default
    if value == "":
        return "empty"
    if key.name == "fm.fields":
        return "user, item"
    return f"`{json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value}`"


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


def reference() -> str:
    """The public names of the package, and the methods of its classes that have a docstring."""
    functions = [described("##", f"sparkcf.{found.__name__}", found) for found in (sparkcf.fit, sparkcf.load)]
    classes = [part for kind in (sparkcf.Recommender, sparkcf.Evaluation, sparkcf.Lake) for part in parts_of(kind)]
    return "\n".join([ABOUT_PYTHON, *functions, *classes])


def parts_of(kind: type) -> Iterator[str]:
    yield described("##", f"sparkcf.{kind.__name__}", kind)
    for name, member in vars(kind).items():
        if not name.startswith("_") and member.__doc__ and (inspect.isfunction(member) or isinstance(member, property)):
            yield described("###", f"{kind.__name__}.{name}", member)


def described(level: str, name: str, found: Any) -> str:
    called = not isinstance(found, property) and not is_dataclass(found)  # nobody constructs the dataclasses
    call = f"```\n{signature_of(found)}\n```\n\n" if called else ""
    return f"{level} `{name}`\n\n{call}{in_markdown(inspect.getdoc(found) or '')}\n"


class Plain(str):
    """A text that a signature shows without quotes."""

    def __repr__(self) -> str:
        return str(self)


def signature_of(found: Callable[..., Any]) -> str:
    """Name, parameters with types and defaults, and the type of the result; a function as a default is "…"."""
    signature = inspect.signature(found)
    shown: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        if parameter.name != "self":
            default = Plain("…") if inspect.isfunction(parameter.default) else parameter.default
            shown.append(str(parameter.replace(annotation=Plain(parameter.annotation), default=default)))
    result = "" if inspect.isclass(found) else f" -> {signature.return_annotation}"
    line = f"{found.__name__}({', '.join(shown)}){result}"
    if len(line) <= WIDTH:
        return line
    parameters = "".join(f"    {one},\n" for one in shown)
    return f"{found.__name__}(\n{parameters}){result}"


def in_markdown(docstring: str) -> str:
    """A docstring of numpydoc's form: its sections' titles are bold, their entries and lines "name : …" are lists."""
    lines, listed = docstring.splitlines(), False
    found = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if after and set(after) == {"-"}:
            found, listed = [*found, f"**{line}**", ""], True
        elif line.startswith("    "):
            found.append(f"  {line.strip()}")
        elif line and set(line) != {"-"}:
            name, colon, text = line.partition(" : ")
            entry = listed or (colon and ENTRY.fullmatch(name))
            found.append(f"- `{name}`: {text}".rstrip() if entry else line)
        elif not line:
            found.append("")
    return "\n".join(found)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def main() -> None:
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")


if __name__ == "__main__":
    main()
