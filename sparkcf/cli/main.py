"""The console command `sparkcf`: queries of published lists and of runs, without Spark.

    sparkcf recommend --user 1 --k 5
    sparkcf similar --item 50 --model als --format json
    sparkcf explain --user 1 --item 50
    sparkcf doctor --lake ./lake

Exit codes: 0 done; 1 an unknown user, item, model or run, or a failed check; 2 usage, or an unreadable lake.
"""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from typer.exceptions import TyperException

from sparkcf.cli.show import Record, as_utf8, print_json, print_lines, print_table, repeat, show, visible
from sparkcf.errors import SparkcfError
from sparkcf.redact import redacted, redacted_values

if TYPE_CHECKING:
    import pyarrow as pa

    from sparkcf.lake.query import Lake

# Packages heavier than typer are imported in functions, so that `--help` and usage errors are fast.
DEFAULT_LAKE = "./lake"
CONCEPT_MODEL = "macridvae"

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
CountOption = Annotated[int, typer.Option("--k", min=1, help="Length of the list.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="Most rows to show.")]

GuardOption = Annotated[
    bool,
    typer.Option(
        "--guard-formulas", help="csv: an apostrophe before texts that a spreadsheet would take for a formula."
    ),
]

app = typer.Typer(
    help="Query a sparkcf lake: published lists, histories, runs and measures. Needs no Spark and no Java.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and end the process; an expected error is one line on standard error.

    Parameters
    ----------
    arguments : of the command line, without the program's name; default: those of the process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        "".join(words).encode()  # raises UnicodeEncodeError: names in a lake are UTF-8
        code = app(words or ["--help"], prog_name="sparkcf", standalone_mode=False)
        sys.stdout.flush()
    except SparkcfError as error:
        code = _complain(str(error), error.exit_code)
    except TyperException as error:
        code = _complain(f"{error.format_message().rstrip('.')} (see `sparkcf --help`)", error.exit_code)
    except UnicodeEncodeError:
        code = _complain("an argument is not valid UTF-8", 2)
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe
        code = _without_stdout(0)
    except OSError as error:
        code = _without_stdout(_complain(str(error), 2))
    raise SystemExit(code or 0)


@app.callback()
def common(context: typer.Context, lake: LakeOption = None) -> None:
    context.obj = lake


@app.command()
def recommend(
    context: typer.Context,
    user: Annotated[str, typer.Option("--user", help="External id of the user.")],
    k: CountOption = 10,
    concept: Annotated[int | None, typer.Option("--concept", help="Rank within this concept alone.")] = None,
    model: ModelOption = None,
    ds: DayOption = None,
    form: FormatOption = "table",
    guard_formulas: GuardOption = False,
    lake: LakeOption = None,
) -> None:
    """Show a user's published list, or rank within one concept of a model that has concepts."""
    opened = _open(context, lake)
    if concept is None:
        rows = opened.recommend_rows(user, k, model, ds)
    else:
        from sparkcf.lake.concepts import Concepts

        rows = Concepts.read(opened, model or CONCEPT_MODEL, ds).list_within(user, concept, k)
    show(_records(rows), rows.column_names, form, _origin(rows), guarded=_guarded(guard_formulas, form))


@app.command()
def similar(
    context: typer.Context,
    item: Annotated[str, typer.Option("--item", help="External id of the item.")],
    k: CountOption = 10,
    model: ModelOption = None,
    ds: DayOption = None,
    form: FormatOption = "table",
    guard_formulas: GuardOption = False,
    lake: LakeOption = None,
) -> None:
    """Show the items nearest to an item."""
    rows = _open(context, lake).similar_rows(item, k, model, ds)
    show(_records(rows), rows.column_names, form, _origin(rows), guarded=_guarded(guard_formulas, form))


@app.command()
def explain(
    context: typer.Context,
    user: Annotated[str, typer.Option("--user", help="External id of the user.")],
    item: Annotated[str, typer.Option("--item", help="External id of the item.")],
    k: Annotated[int, typer.Option("--k", min=1, help="Parts that a table lists one by one.")] = 10,
    model: ModelOption = None,
    ds: DayOption = None,
    form: Annotated[
        Literal["table", "json"], typer.Option("--format", help="json prints every part, unrounded.")
    ] = "table",
    lake: LakeOption = None,
) -> None:
    """Show what a published model's score of an item is made of for a user."""
    from sparkcf.cli import explain as shown
    from sparkcf.ranking.explain import explain as explained_by

    found = explained_by(_open(context, lake), user, item, model, ds)
    if form == "json":
        as_utf8(form)
        print_json(shown.as_json(found))
    else:
        show(shown.records(found, k), shown.COLUMNS, form, *shown.caption(found))


@app.command()
def history(
    context: typer.Context,
    user: Annotated[str, typer.Option("--user", help="External id of the user.")],
    limit: LimitOption = 20,
    form: FormatOption = "table",
    guard_formulas: GuardOption = False,
    lake: LakeOption = None,
) -> None:
    """Show a user's interactions, newest first."""
    rows = _open(context, lake).history_rows(user, limit)
    show(_records(rows), rows.column_names, form, guarded=_guarded(guard_formulas, form))


@app.command()
def runs(
    context: typer.Context,
    limit: LimitOption = 20,
    model: Annotated[str | None, typer.Option("--model", help="Runs of this model only.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show them again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks of --watch.")] = 5.0,
    form: FormatOption = "table",
    lake: LakeOption = None,
) -> None:
    """Show the newest runs, failed ones included."""
    from sparkcf.cli import runs as shown

    opened = _open(context, lake)

    def look() -> Callable[[], None]:
        rows = opened.run_rows(limit, model)
        records, reasons = shown.listed(rows.to_pylist(), dt.datetime.now(dt.UTC))

        def draw() -> None:
            if form == "table":
                show(records, shown.COLUMNS, form)
                print_lines(reasons)
            else:
                show(_records(rows), rows.column_names, form)

        return draw

    if watch and form != "table":
        raise typer.BadParameter(f"--watch shows a table, not --format {form}")
    if watch:
        repeat(look, every)
    else:
        look()()


@app.command()
def run(
    context: typer.Context,
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A run, as `sparkcf runs` lists them.")],
    form: Annotated[Literal["table", "json"], typer.Option("--format", help="json prints one object.")] = "table",
    lake: LakeOption = None,
) -> None:
    """Show one run: its state, steps, counts, measures, changed settings and the tables that it read."""
    from sparkcf.cli import runs as shown
    from sparkcf.lake.run_details import read_run

    details = read_run(_open(context, lake), run_id)
    as_utf8(form)
    if form == "json":
        print_json(shown.as_json(details))
    else:
        print_lines(shown.about(details))
        for section in shown.parts(details):
            if section.records:
                print_table(section.records, section.columns, [section.caption])
            else:
                print_lines([section.caption])


@app.command()
def metrics(
    context: typer.Context,
    run_id: Annotated[str | None, typer.Option("--run-id", help="A run; by default the published one.")] = None,
    model: ModelOption = None,
    dimensions: Annotated[bool, typer.Option("--dimensions", help="Also by segment and latent dimension.")] = False,
    form: FormatOption = "table",
    lake: LakeOption = None,
) -> None:
    """Show the measures of a run."""
    rows = _open(context, lake).metric_rows(run_id, model, dimensions)
    columns = [name for name in rows.column_names if form != "table" or name != "run_id"]
    show(_records(rows), columns, form, _origin(rows) or f"run {run_id}")


@app.command()
def concepts(
    context: typer.Context,
    vary: Annotated[
        str | None,
        typer.Option("--vary", metavar="CONCEPT:DIMENSION", help="How the ranking moves with one dimension."),
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="With --vary: start from this user's vector.")] = None,
    k: CountOption = 5,
    model: ModelOption = None,
    ds: DayOption = None,
    form: FormatOption = "table",
    lake: LakeOption = None,
) -> None:
    """Show what the concepts of a model are made of."""
    from sparkcf.lake.concepts import Concepts

    read = Concepts.read(_open(context, lake), model or CONCEPT_MODEL, ds)
    if vary is None:
        rows = read.summaries()
    else:
        concept, _, dimension = vary.partition(":")
        if not (concept.isdigit() and dimension.isdigit()):
            raise typer.BadParameter(f"--vary {vary}: give a concept and a dimension, such as 3:17")
        rows = read.varied(int(concept), int(dimension), k, user)
    show(_records(rows), rows.column_names, form, _origin(rows))


@app.command()
def compare(
    context: typer.Context,
    measure: Annotated[
        str | None, typer.Option("--measure", metavar="NAME", help="Such as recall@20; by default the gate's measure.")
    ] = None,
    plot: Annotated[
        str | None, typer.Option("--plot", metavar="FILE.svg", help="Also write a plot of quality and training time.")
    ] = None,
    form: Annotated[
        Literal["table", "markdown", "json"], typer.Option("--format", help="json prints every measure, unrounded.")
    ] = "table",
    lake: LakeOption = None,
) -> None:
    """Show the newest comparison of models: quality, training time, memory and size."""
    from sparkcf.cli import compare as shown
    from sparkcf.lake.compared import newest_comparison

    if plot is not None and not plot.endswith(".svg"):
        raise typer.BadParameter(f"--plot {plot}: give the name of an SVG file, such as compared.svg")
    found = newest_comparison(_open(context, lake))
    chosen = shown.measure_named(found, measure)
    if plot is not None:
        shown.write_plot(found, chosen, plot)
    if form == "table":
        heads, rows = shown.cells(found, chosen)
        lines = shown.caption(found, chosen)
        show([dict(zip(heads, row, strict=True)) for row in rows], heads, form, *lines)
    else:
        as_utf8(form)
        print(shown.as_json(found) if form == "json" else shown.markdown(found, chosen))


@app.command()
def report(
    context: typer.Context,
    run_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN_ID]...", help="Runs; by default those of the newest night.")
    ] = None,
    output: Annotated[str, typer.Option("--output", metavar="FILE.html", help="The page.")] = "report.html",
    model: Annotated[list[str] | None, typer.Option("--model", help="Only this model; may be repeated.")] = None,
    ds: Annotated[
        str | None, typer.Option("--ds", metavar="YYYY-MM-DD", help="The night of this logical date.")
    ] = None,
    users: Annotated[int, typer.Option("--users", min=0, max=50, help="Users to show with their lists.")] = 10,
    lake: LakeOption = None,
) -> None:
    """Write a page about a night: verdict, quality, data, lists and users. One HTML file that needs nothing else."""
    from sparkcf.lake.query import day_of
    from sparkcf.report.page import write_report

    written = write_report(_open(context, lake), output, run_ids or (), day_of(ds), model or (), users)
    print_lines([written.headline, f"{written.path}: {written.size / 1000:,.0f} kB"])


@app.command()
def doctor(
    context: typer.Context,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the night, as a job takes them.")
    ] = None,
    config: Annotated[
        list[str] | None, typer.Option("--config", metavar="FILE", help="Also check what a night with it needs.")
    ] = None,
    spark: Annotated[bool, typer.Option("--spark/--no-spark", help="Also start Spark and check it.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Also read every file of the lake.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Take lost and damaged files out of their tables.")] = False,
    form: FormatOption = "table",
    lake: LakeOption = None,
) -> None:
    """Check this machine and the lake; each finding with its cure."""
    from dataclasses import asdict

    from sparkcf.cli.doctor import diagnose
    from sparkcf.cli.preflight import check_night

    checks, of_night = check_night(config or (), overrides or ()) if config or overrides else ([], None)
    root = lake or context.obj or of_night or DEFAULT_LAKE
    checks += diagnose(root, spark, deep=deep, repair=repair)
    show(redacted_values([asdict(check) for check in checks]), ["check", "status", "found", "cure"], form)
    raise typer.Exit(1 if any(check.status == "fail" for check in checks) else 0)


@app.command()
def size(
    interactions: Annotated[float, typer.Option("--interactions", min=1, help="Events that train, such as 5e9.")],
    users: Annotated[float, typer.Option("--users", min=1)],
    items: Annotated[float, typer.Option("--items", min=1)],
    day: Annotated[float | None, typer.Option("--day", min=0, help="New events a day; by default a hundredth.")] = None,
    rank: Annotated[int, typer.Option("--rank", min=1)] = 64,
    sweeps: Annotated[int, typer.Option("--sweeps", min=1)] = 15,
    k: Annotated[int, typer.Option("--k", min=1, help="Length of the lists.")] = 100,
    models: Annotated[int, typer.Option("--models", min=1, help="Models such as als.")] = 1,
    cores: Annotated[int, typer.Option("--cores", min=1, help="Cores of all executors.")] = 64,
    executor_cores: Annotated[int, typer.Option("--executor-cores", min=1)] = 4,
    executor_gb: Annotated[float, typer.Option("--executor-gb", min=1, help="Memory of an executor.")] = 16,
    driver_gb: Annotated[float, typer.Option("--driver-gb", min=1)] = 8,
    form: FormatOption = "table",
) -> None:
    """Estimate a night's hours, memory and disk on a cluster, and what breaks first."""
    from dataclasses import asdict

    from sparkcf.cli import size as sizing
    from sparkcf.training.blocks import worker_bytes

    load = sizing.Load(interactions, interactions / 100 if day is None else day, users, items, rank, sweeps, k, models)
    cluster = sizing.Cluster(cores, executor_cores, executor_gb * 1e9, driver_gb * 1e9)
    steps = sizing.steps(load, cluster)
    limits = sizing.limits(load, cluster, worker_bytes)
    disk = sizing.lake_bytes(load) / 1e9
    if form == "json":
        print_json({"steps": [asdict(s) for s in steps], "limits": [asdict(x) for x in limits], "lake_gb": disk})
        return
    times = [{"step": s.step, "core_hours": f"{s.core_hours:.3g}", "hours": f"{s.hours:.3g}"} for s in steps]
    show(times, ["step", "core_hours", "hours"], form, f"{cluster.workers:,} workers; the lake: {disk:,.0f} GB")
    needs = [{"needed": x.what, "needs": f"{x.needs:,.4g}", "has": f"{x.has:,.4g}", "unit": x.unit} for x in limits]
    broken = [f"{limit.what}: {limit.cure}" for limit in limits if limit.share > 1]
    lines = ["what breaks first, and its cure:", *broken] if broken else ["nothing breaks; the scarcest first"]
    show(needs, ["needed", "needs", "has", "unit"], form, *lines)


@app.command()
def upgrade(
    context: typer.Context,
    apply: Annotated[bool, typer.Option("--apply", help="Make the changes; without it they are only shown.")] = False,
    form: FormatOption = "table",
    lake: LakeOption = None,
) -> None:
    """Bring a lake of an older format to the present one: columns and properties, never rows. Starts Spark."""
    from sparkcf.cli.upgrade import upgrade_lake

    changes = upgrade_lake(_root(context, lake), apply)
    show([{"table": change.table, "change": change.words} for change in changes], ["table", "change"], form)
    if changes and not apply:
        typer.echo("Nothing was changed: add --apply to make these changes.", err=True)


def _root(context: typer.Context, lake: str | None) -> str:
    """The lake's root: an option --lake after the command wins over one before it."""
    return next((root for root in (lake, context.obj) if root is not None), DEFAULT_LAKE)


def _open(context: typer.Context, lake: str | None) -> Lake:
    from sparkcf.lake.query import Lake

    return Lake(_root(context, lake))


def _origin(rows: pa.Table) -> str:
    run = {name.decode(): value.decode() for name, value in (rows.schema.metadata or {}).items()}
    return f"{run['model']}, published for {run['ds']}, run {run['run_id']}" if run else ""


def _records(rows: pa.Table) -> list[Record]:
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


def _guarded(guard_formulas: bool, form: str) -> bool:
    if guard_formulas and form != "csv":
        raise typer.BadParameter("--guard-formulas needs --format csv")
    return guard_formulas


def _complain(message: str, code: int) -> int:
    print(f"sparkcf: {visible(redacted(message))}", file=sys.stderr)
    return code


def _without_stdout(code: int) -> int:
    """Redirect standard output to the null device, so that the final flush does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


if __name__ == "__main__":
    main()
