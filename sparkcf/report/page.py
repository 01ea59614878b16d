"""The page: one self-contained HTML file without script, the same bytes for the same runs."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from sparkcf.errors import ConfigError
from sparkcf.lake.query import Lake
from sparkcf.redact import redacted
from sparkcf.report import content, quality
from sparkcf.report.gather import Gathered, gather
from sparkcf.report.parts import Section
from sparkcf.report.reranking import reranking
from sparkcf.report.study import read_study, tuning
from sparkcf.report.words import CONTROLS, FAILED, OPEN, PUBLISHED, REFUSED, checks, named, number, short, verdict

LABELS = {PUBLISHED: "published", REFUSED: "refused", FAILED: "failed", OPEN: "not published"}


@dataclass(frozen=True)
class Written:
    """A page that was written: its file, its size in bytes, and its headline."""

    path: str
    size: int
    headline: str


def write_report(
    lake: Lake,
    path: str,
    run_ids: Sequence[str] = (),
    ds: dt.date | None = None,
    models: Sequence[str] = (),
    users: int = 10,
    study: str | None = None,
) -> Written:
    """Write the page about a night's runs to a local file; an earlier page is replaced at once.

    `study` : JSON file of a study of jobs/tune.py, which the page shows too.

    Raises
    ------
    NotFoundError
        There is no such run or day.
    LakeError
        There is no lake, or one of its tables cannot be read.
    ConfigError
        The file cannot be written, or the study cannot be read.
    """
    tuned = read_study(study) if study is not None else None
    found = replace(gather(lake, run_ids, ds, models, users), study=tuned)
    page = render(lake.root, found).encode("utf-8")
    target = Path(path)
    if not target.name:
        raise ConfigError(f"the report cannot be written to {path!r}: name a file")
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(page)
        unfinished.replace(target)
    except OSError as error:
        with suppress(OSError):  # such as a folder that is a file
            unfinished.unlink(missing_ok=True)
        raise ConfigError(f"the report {path} cannot be written: {error.strerror or error}") from None
    return Written(str(path), len(page), headline(found))


def render(root: str, found: Gathered) -> str:
    """The page's text."""
    folder = files("sparkcf.report")
    template = folder.joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(
        loader=DictLoader({"page.html": template}),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"named": named, "clean": lambda text: str(text).translate(CONTROLS)}
    verdicts = []
    for run in found.night.runs:
        kind, sentence = verdict(run)
        if run.before is not None and kind != FAILED:
            sentence += f" Before it readers had run {run.before.run_id}."
        known = {"model": run.model, "run_id": run.run_id, "kind": kind, "label": LABELS[kind]}
        verdicts.append(known | {"sentence": sentence, "checks": checks(run)})
    page = environment.get_template("page.html").render(
        css=Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        ds=found.night.ds.isoformat(),
        root=redacted(root),
        headline=headline(found),
        verdicts=verdicts,
        facts=facts(found),
        sections=sections(found),
    )
    return "\n".join(line for line in page.splitlines() if line.strip()) + "\n"


def headline(found: Gathered) -> str:
    """How many models were published, refused and failed, with their names if they are few."""
    ended: dict[str, list[str]] = {}
    for run in found.night.runs:
        ended.setdefault(verdict(run)[0], []).append(run.model)
    shown = []
    for kind, label in LABELS.items():
        if models := ended.get(kind):
            names = ", ".join(models) if len(models) <= 4 else f"{len(models)} models"
            shown.append(f"{names} {label}")
    return "; ".join(shown)


def facts(found: Gathered) -> list[tuple[str, str]]:
    """The night in a few numbers."""
    shown: list[tuple[str, str]] = []
    load = found.night.load
    if load and "clean" in load["counts"]:
        shown.append((f"{load['counts']['clean']:,}", "new clean rows"))
        shown.append((f"{load['counts'].get('quarantined', 0):,}", "rows quarantined"))
    if found.events and found.catalogue:
        shown.append((f"{found.events.total:,}", "events in all"))
        shown.append((f"{found.events.by_user.num_rows:,}", "users with events"))
        shown.append((f"{len(found.catalogue.ids):,}", "items"))
    lead = found.lead.run if found.lead else None
    figure = lead.figures.get(lead.gate_measure()) if lead and lead.figures else None
    if lead and figure:
        shown.append((number(figure.value), f"{short(lead.gate_measure())} of {named(lead.model)}"))
    return shown


def sections(found: Gathered) -> list[Section]:
    """All sections in their order; those that no run has data for are left out or say so."""
    every = [
        quality.quality(found),
        quality.comparison(found.comparison),
        content.rows(found),
        content.data(found),
        quality.training(found),
        tuning(found.study),
        quality.segments(found),
        content.lists(found),
        reranking(found),
        quality.calibration(found),
        content.users(found),
        content.maps(found),
        content.concepts(found),
        content.costs(found),
        content.versions(found),
    ]
    return [section for section in every if section is not None]
