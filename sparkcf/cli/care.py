"""Commands that look after machines and lakes."""

from __future__ import annotations

from typing import Annotated

import typer

from sparkcf.cli.app import DEFAULT_LAKE, FormatOption, LakeOption, app, root_of
from sparkcf.cli.show import print_json, show
from sparkcf.redact import redacted_values


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
    import math

    for name, number in (("interactions", interactions), ("users", users), ("items", items), ("day", day or 0.0)):
        if not math.isfinite(number):
            raise typer.BadParameter(f"--{name} {number}: give a finite number")
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
    if form == "csv":
        show(sizing.as_rows(steps, limits, disk), sizing.ROW, form)
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

    changes = upgrade_lake(root_of(context, lake), apply)
    show([{"table": change.table, "change": change.words} for change in changes], ["table", "change"], form)
    if changes and not apply:
        typer.echo("Nothing was changed: add --apply to make these changes.", err=True)
