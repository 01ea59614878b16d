"""What the commands of `sparkcf` share: the application, its options, and how rows become records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sparkcf.cli.show import Record, as_utf8

if TYPE_CHECKING:
    import pyarrow as pa

    from sparkcf.lake.query import Lake

# Packages heavier than typer are imported in functions, so that `--help` and usage errors are fast.
DEFAULT_LAKE = "./lake"
CONCEPT_MODEL = "macridvae"
MOST = 2**31 - 1  # rows of a list

LakeOption = Annotated[
    str | None,
    typer.Option("--lake", metavar="PATH", help=f"The lake: a folder or an address; by default {DEFAULT_LAKE}."),
]
FormatOption = Annotated[
    Literal["table", "json", "csv"], typer.Option("--format", help="json and csv print unrounded values.")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="A published model; by default als.")]
DayOption = Annotated[
    str | None,
    typer.Option("--ds", metavar="YYYY-MM-DD", help="Logical date; by default the latest published."),
]
CountOption = Annotated[int, typer.Option("--k", min=1, max=MOST, help="Length of the list.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, max=MOST, help="Most rows to show.")]

GuardOption = Annotated[
    bool,
    typer.Option(
        "--guard-formulas", help="csv: an apostrophe before texts that a spreadsheet would take for a formula."
    ),
]

app = typer.Typer(
    help="Query a sparkcf lake: published lists, histories, runs and measures. Needs no Spark and no Java, but for "
    "`upgrade` and `doctor --spark`.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from sparkcf.version import __version__

        print(f"sparkcf {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    lake: LakeOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    as_utf8("table")
    context.obj = lake


def root_of(context: typer.Context, lake: str | None) -> str:
    """The lake's root: an option --lake after the command wins over one before it."""
    return next((root for root in (lake, context.obj) if root is not None), DEFAULT_LAKE)


def opened(context: typer.Context, lake: str | None) -> Lake:
    from sparkcf.lake.query import Lake

    return Lake(root_of(context, lake))


def origin(rows: pa.Table) -> str:
    run = {name.decode(): value.decode() for name, value in (rows.schema.metadata or {}).items()}
    return f"{run['model']}, published for {run['ds']}, run {run['run_id']}" if run else ""


def records_of(rows: pa.Table) -> list[Record]:
    """Rows as dictionaries; maps become dictionaries, a float32 its shortest exact decimal."""
    import numpy as np
    import pyarrow as pa

    columns = []
    for column in rows.columns:
        values = column.to_pylist()
        if pa.types.is_map(column.type):
            values = [None if v is None else dict(v) for v in values]
        elif pa.types.is_float32(column.type):
            values = [None if v is None else float(str(np.float32(v))) for v in values]
        columns.append(values)
    return [dict(zip(rows.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def guarded_by(guard_formulas: bool, form: str) -> bool:
    if guard_formulas and form != "csv":
        raise typer.BadParameter("--guard-formulas needs --format csv")
    return guard_formulas
