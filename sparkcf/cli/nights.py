"""Commands that tell what happened: runs, measures, comparisons, the report."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Annotated, Literal

import typer

from sparkcf.cli.app import MOST, FormatOption, LakeOption, LimitOption, ModelOption, app, opened, origin, records_of
from sparkcf.cli.show import as_utf8, print_json, print_lines, print_table, repeat, show


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

    found = opened(context, lake)

    def look() -> Callable[[], None]:
        rows = found.run_rows(limit, model)
        records, reasons = shown.listed(rows.to_pylist(), dt.datetime.now(dt.UTC))

        def draw() -> None:
            if form == "table":
                show(records, shown.COLUMNS, form)
                print_lines(reasons)
            else:
                show(records_of(rows), rows.column_names, form)

        return draw

    if not every < MOST:
        raise typer.BadParameter(f"--every {every}: give seconds")
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
    form: Annotated[
        Literal["table", "json", "csv"], typer.Option("--format", help="json prints one object, csv a row a value.")
    ] = "table",
    lake: LakeOption = None,
) -> None:
    """Show one run: its state, steps, counts, measures, changed settings and the tables that it read."""
    from sparkcf.cli import runs as shown
    from sparkcf.lake.run_details import read_run

    details = read_run(opened(context, lake), run_id)
    as_utf8(form)
    if form == "json":
        print_json(shown.as_json(details))
    elif form == "csv":
        show(shown.as_rows(details), shown.ROW, form)
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
    fit: Annotated[bool, typer.Option("--fit", help="table: also the fit's log; json and csv always have it.")] = False,
    form: FormatOption = "table",
    lake: LakeOption = None,
) -> None:
    """Show the measures of a run, those of popularity beside the model's."""
    from sparkcf.cli.runs import SYSTEMS, side_by_side

    rows = opened(context, lake).metric_rows(run_id, model, dimensions)
    records = records_of(rows)
    if form != "table":
        show(records, rows.column_names, form)
        return
    log = [record for record in records if record["protocol"] == "fit"]
    figures = [record for record in records if record["protocol"] != "fit"]
    found = dict.fromkeys(record["system"] for record in figures)
    systems = sorted(found, key=lambda system: SYSTEMS.index(system) if system in SYSTEMS else len(SYSTEMS))
    told = [origin(rows) or f"run {run_id}"] + (
        [f"The fit's log has {len(log):,} rows: --fit"] if log and not fit else []
    )
    show(side_by_side(figures, systems), ["measure", *systems], form, *told)
    if fit:
        columns = [name for name in rows.column_names if name not in ("run_id", "system", "protocol")]
        show(log, columns, form, "the fit's log; k is the sweep or epoch")


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
        Literal["table", "markdown", "json", "csv"],
        typer.Option("--format", help="csv prints the measure of every model, json every measure, unrounded."),
    ] = "table",
    lake: LakeOption = None,
) -> None:
    """Show the newest comparison of models: quality, training time, memory and size."""
    from sparkcf.cli import compare as shown
    from sparkcf.lake.compared import newest_comparison

    if plot is not None and not plot.endswith(".svg"):
        raise typer.BadParameter(f"--plot {plot}: give the name of an SVG file, such as compared.svg")
    found = newest_comparison(opened(context, lake))
    chosen = shown.measure_named(found, measure)
    if plot is not None:
        shown.write_plot(found, chosen, plot)
    if form == "table":
        heads, rows = shown.cells(found, chosen)
        lines = shown.caption(found, chosen)
        show([dict(zip(heads, row, strict=True)) for row in rows], heads, form, *lines)
    elif form == "csv":
        show(shown.records(found, chosen), shown.COLUMNS, form)
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
    study: Annotated[
        str | None, typer.Option("--study", metavar="FILE.json", help="Also show a study, as jobs/tune.py wrote it.")
    ] = None,
    lake: LakeOption = None,
) -> None:
    """Write a page about a night: verdict, quality, data, lists and users. One HTML file that needs nothing else."""
    from sparkcf.lake.query import day_of
    from sparkcf.report.page import write_report

    written = write_report(opened(context, lake), output, run_ids or (), day_of(ds), model or (), users, study)
    print_lines([written.headline, f"{written.path}: {written.size / 1000:,.0f} kB"])
