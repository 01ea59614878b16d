"""Commands that read published lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sparkcf.cli.app import (
    CONCEPT_MODEL,
    CountOption,
    DayOption,
    FormatOption,
    GuardOption,
    LakeOption,
    LimitOption,
    ModelOption,
    app,
    guarded_by,
    opened,
    origin,
    records_of,
)
from sparkcf.cli.show import as_utf8, print_json, show

if TYPE_CHECKING:
    import pyarrow as pa


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
    found, unread = opened(context, lake), ""
    if concept is None:
        rows = found.recommend_rows(user, k, model, ds)
    else:
        from sparkcf.lake.concepts import Concepts

        concepts = Concepts.read(found, model or CONCEPT_MODEL, ds)
        rows = concepts.list_within(user, concept, k)
        if concepts.unread_ban:
            unread = f"items of topk.ineligible={concepts.unread_ban} may be listed: only jobs/recommend.py reads it"
    note = _shorter(context, rows, k, "jobs/recommend.py writes topk.k items a user")
    captions = (origin(rows), note, unread)
    show(records_of(rows), rows.column_names, form, *captions, guarded=guarded_by(guard_formulas, form))


def _shorter(context: typer.Context, rows: pa.Table, k: int, why: str) -> str:
    """A line where there are fewer rows than --k asks for; else empty."""
    source = context.get_parameter_source("k")
    asked = source is not None and source.name == "COMMANDLINE"
    return f"{rows.num_rows:,} of {k:,} rows: {why}" if asked and rows.num_rows < k else ""


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
    rows = opened(context, lake).similar_rows(item, k, model, ds)
    note = _shorter(context, rows, k, "jobs/recommend.py writes topk.similar_items neighbours an item")
    show(records_of(rows), rows.column_names, form, origin(rows), note, guarded=guarded_by(guard_formulas, form))


@app.command()
def find(
    context: typer.Context,
    title: Annotated[str, typer.Argument(metavar="TEXT", help="A part of the title; case does not matter.")],
    limit: LimitOption = 20,
    form: FormatOption = "table",
    guard_formulas: GuardOption = False,
    lake: LakeOption = None,
) -> None:
    """Find items by a part of their title."""
    rows = opened(context, lake).find_rows(title, limit)
    show(records_of(rows), rows.column_names, form, guarded=guarded_by(guard_formulas, form))


@app.command()
def explain(
    context: typer.Context,
    user: Annotated[str, typer.Option("--user", help="External id of the user.")],
    item: Annotated[str, typer.Option("--item", help="External id of the item.")],
    k: Annotated[int, typer.Option("--k", min=1, help="Parts that a table lists one by one.")] = 10,
    model: ModelOption = None,
    ds: DayOption = None,
    form: Annotated[
        Literal["table", "json", "csv"], typer.Option("--format", help="json and csv print every part, unrounded.")
    ] = "table",
    lake: LakeOption = None,
) -> None:
    """Show what a published model's score of an item is made of for a user."""
    from sparkcf.cli import explain as shown
    from sparkcf.ranking.explain import explain as explained_by

    found = explained_by(opened(context, lake), user, item, model, ds)
    if form == "json":
        as_utf8(form)
        print_json(shown.as_json(found))
    elif form == "csv":
        parts = shown.as_json(found)["parts"]
        show(parts, ["kind", "label", "item_id", "title", "value"], form)
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
    rows = opened(context, lake).history_rows(user, limit)
    show(records_of(rows), rows.column_names, form, guarded=guarded_by(guard_formulas, form))


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

    read = Concepts.read(opened(context, lake), model or CONCEPT_MODEL, ds)
    if vary is None:
        rows = read.summaries()
    else:
        concept, _, dimension = vary.partition(":")
        if not (concept.isdecimal() and dimension.isdecimal()):
            raise typer.BadParameter(f"--vary {vary}: give a concept and a dimension, such as 3:17")
        rows = read.varied(int(concept), int(dimension), k, user)
    show(records_of(rows), rows.column_names, form, origin(rows))
