"""Commands for the first hour: a configuration from a look at a file, and what there is to choose from."""

from __future__ import annotations

import datetime as dt
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from sparkcf.cli.app import FormatOption, LakeOption, app, opened
from sparkcf.cli.show import print_lines, print_table, show
from sparkcf.errors import ConfigError


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of interactions: CSV, JSON lines or Parquet.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE.yaml", help="The new file.")] = Path("sparkcf.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that there is.")] = False,
) -> None:
    """Write a configuration from a look at a file of interactions, and say what to run."""
    from sparkcf.cli.guess import as_yaml, guess_file
    from sparkcf.config.load import load_config

    guess = guess_file(file)
    day = dt.datetime.now(dt.UTC).date()  # no event of the file is later
    text = as_yaml(guess, file.resolve(), output)
    if output.exists() and not force:
        raise ConfigError(f"{output} exists: give --force to replace it, or another --output")
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}: give another --output") from None
    config = load_config((str(output),), [f"ds={day}"])
    print_table(guess.rows[:3], list(guess.names), [f"{file}: {guess.form_in_words}, its first rows"])
    found = ", ".join(f"{ours} = {theirs}" for ours, theirs in guess.columns.items())
    print_lines([f"columns: {found}" + (f" ({guess.ts_format})" if guess.ts_format else ""), *guess.notes])
    user = next(filter(None, (row[guess.columns["user_id"]] for row in guess.rows)), "USER")
    at = f"--lake {shlex.quote(config.lake.root)}"
    print_lines(
        [
            f"{output} is written. A night on this file, which ends with a page, {config.report.path}:",
            f"    make nightly CONFIG={shlex.quote(str(output))} ARGS=ds={day}",
            "and then:",
            f"    sparkcf recommend --user {shlex.quote(user)} {at}",
            f"    sparkcf report {at}",
        ]
    )


@app.command()
def models(form: FormatOption = "table") -> None:
    """Show the models that can be trained, those of installed packages too."""
    from sparkcf.config.load import model_names
    from sparkcf.config.models import SECTIONS

    records = []
    for name in model_names():
        section = SECTIONS.get(name)
        about = (section.__doc__ or "").splitlines()[0].partition(";")[0].rstrip(".") if section else ""
        records.append({"model": name, "what it is": about or "of another package", "own": section is not None})
    show(records, ["model", "what it is"] if form == "table" else ["model", "what it is", "own"], form)


@app.command()
def tables(context: typer.Context, form: FormatOption = "table", lake: LakeOption = None) -> None:
    """Show the lake's tables: their versions, rows, sizes and columns."""
    from sparkcf.cli.tables import TABLE_COLUMNS, about_tables

    records = about_tables(opened(context, lake))
    show(records, TABLE_COLUMNS if form == "table" else [*TABLE_COLUMNS, "columns"], form)


@app.command()
def completion(
    shell: Annotated[Literal["bash", "zsh"], typer.Argument(metavar="bash|zsh", help="The shell.")],
) -> None:
    """Print a script that completes commands and options: add `source <(sparkcf completion bash)` to ~/.bashrc."""
    from sparkcf.cli.completion import script

    print(script(shell))


@app.command()
def export(
    context: typer.Context,
    at: Annotated[str, typer.Argument(metavar="FOLDER|ADDRESS", help="A folder, or redis://host:port/db.")],
    to: Annotated[
        Literal["parquet", "sqlite", "jsonl", "redis", "vectors", "encoder"],
        typer.Option("--to", help="What to write: lists; vectors; or the encoder of users' rows, for torch."),
    ] = "parquet",
    model: Annotated[str | None, typer.Option("--model", help="A published model; by default als.")] = None,
    ds: Annotated[str | None, typer.Option("--ds", metavar="YYYY-MM-DD", help="Logical date.")] = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="A run; by default the published one.")] = None,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Versions that stay, the new one among them.")] = 2,
    faiss: Annotated[bool, typer.Option("--faiss", help="vectors: also an index of items (extra `faiss`).")] = False,
    lake: LakeOption = None,
) -> None:
    """Hand a run's lists, vectors or encoder to what serves them; readers see the old version or the whole new one."""
    from sparkcf.export.export import export_run
    from sparkcf.export.lists import find_run

    found = opened(context, lake)
    done = export_run(found, find_run(found, model, ds, run_id), to, at, keep, faiss=faiss)
    counted = {name: n for name, n in done.manifest.items() if type(n) is int and n and name != "recall_users"}
    counts = ", ".join(f"{n:,} {name}" for name, n in counted.items())
    print_lines([f"{done.run.model}, run {done.run.run_id}: {counts} ({done.seconds:.1f} s)"])
    print_lines(
        [
            f"{name.replace('_at_', '@')} of the index against exact search: {share:.4f}, "
            f"over {done.manifest['recall_users']:,} users"
            for name, share in done.manifest.items()
            if name.startswith("recall_at_")
        ]
    )
    print_lines([f"readers find version {done.version} at {done.place}", *(f"removed {name}" for name in done.removed)])
