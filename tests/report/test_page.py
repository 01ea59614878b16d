"""The page is one file without requests or scripts, the same bytes for the same runs; data in it stays data."""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sparkcf.errors import ConfigError, LakeError, NotFoundError
from sparkcf.lake.query import Lake
from sparkcf.report import svg
from sparkcf.report.counts import count_events, gini, held_by_top, read_catalogue
from sparkcf.report.gather import gather
from sparkcf.report.lists import read_lists, sample_users
from sparkcf.report.night import read_night
from sparkcf.report.page import render, write_report
from sparkcf.report.quality import WITHOUT_PREDICTIONS
from sparkcf.report.vectors import principal_plane, read_intervals
from sparkcf.report.words import checks, verdict
from tests.report.lakes import (
    ARABIC,
    EMOJI,
    TODAY,
    YESTERDAY,
    write_concepts,
    write_night,
    write_predictions,
    write_reranked,
)

VOID = {"meta", "link", "br", "img", "input", "hr"}
SVG = {"path", "use", "rect", "g", "defs", "text", "clippath"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; checks that its elements are nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_night(tmp_path_factory.mktemp("report") / "lake", models=3)


@pytest.fixture(scope="module")
def html(root: Path) -> str:
    return render(str(root), gather(Lake(root)))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


# One file, without requests.


def test_nothing_is_fetched_or_run(html: str, page: Page) -> None:
    assert {"script", "link", "img", "iframe", "object", "embed", "foreignobject"} & set(page.tags) == set()
    addresses = [v for _, name, v in page.attributes if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert addresses and all(value.startswith("#") for value in addresses)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "http:" not in html and "https:" not in html and "@import" not in html
    assert set(re.findall(r"url\(([^)]*)", html)) <= {f"#{m}" for m in re.findall(r'id="([^"]+)"', html)}


def test_every_id_is_there_once_and_every_reference_leads_somewhere(html: str, page: Page) -> None:
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for _, name, value in page.attributes if name == "href"} <= set(ids)


def test_the_bytes_are_the_same_in_another_process(root: Path, html: str) -> None:
    code = (
        "import sys; from sparkcf.lake.query import Lake; from sparkcf.report.gather import gather;"
        "from sparkcf.report.page import render; sys.stdout.buffer.write(render(sys.argv[1], gather(Lake(sys.argv[1])))"
        ".encode())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, env=environment, check=True)
    assert done.stdout.decode() == html


def test_a_later_night_changes_no_byte_of_an_earlier_page(tmp_path: Path) -> None:
    before = write_night(tmp_path / "before", models=2, days=(YESTERDAY,))
    after = write_night(tmp_path / "after", models=2, new_items=9)
    pages = [render("lake", gather(Lake(lake), ds=YESTERDAY)) for lake in (before, after)]
    assert pages[0] == pages[1] and f"<h1>{YESTERDAY}: als, model2 published" in pages[0]
    with pytest.raises(ConfigError, match="name a file"):
        write_report(Lake(before), "/", ds=YESTERDAY)


@pytest.mark.parametrize("models", [1, 12])
def test_one_and_twelve_models_fit_into_a_megabyte(tmp_path: Path, models: int) -> None:
    lake = write_night(tmp_path / "lake", models=models, users=300, items=1500, events=8000, points=16)
    for model in ("als", "model2", "model12")[: 1 if models == 1 else 3]:
        write_predictions(lake, model, f"{model}-2")
    written = write_report(Lake(lake), str(tmp_path / "out" / "page.html"))
    text = Path(written.path).read_text(encoding="utf-8")
    assert written.size == len(text.encode()) <= 1_000_000
    assert len(re.findall('<section class="card', text)) == models
    Page(text)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["page.html"]


# Data stays data.


def test_titles_with_markup_are_text(html: str, page: Page) -> None:
    assert "<script" not in html and "<b>bold" not in html and "<i>Comedy" not in html
    assert '<script>alert("x")</script> & <b>bold</b> $x_{1}$' in page.text
    assert "because you had <Alien>" in page.text
    assert "The gate refused: <script>" in page.text


def test_titles_in_other_scripts_stand_in_an_element_of_their_own_direction(html: str) -> None:
    for title in (ARABIC, EMOJI):
        assert f'<bdi dir="auto">{title}</bdi>' in html


def test_control_characters_are_no_part_of_the_page(html: str) -> None:
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", html)
    assert '<bdi dir="auto">abc\u202edef [31m </bdi>' in html  # the override ends with its element


def test_texts_of_charts_are_escaped_and_no_mathematics() -> None:
    found = svg.chart(lambda axes: axes.set_xlabel("$x_{1}$ <b> & \u05d0"), "c", '"><script>')
    assert "$x_{1}$ &lt;b&gt; &amp; \u05d0" in found and "<script>" not in found
    assert all(f"var(--{name})" in found for name in ("muted", "line")) and "#0101" not in found


# What is said.


def test_the_verdict_and_the_gates_reasons_come_first(page: Page) -> None:
    text = page.text
    assert (
        text.index("als, model3 published; model2 refused")
        < text.index("The gate refused")
        < text.index("Every difference has")
    )
    assert "ndcg@10 is not worse than popularity's: 0.3000, popularity 0.2000" in text


def test_sections_stand_in_their_order(html: str) -> None:
    found = re.findall(r'<h2 id="(\w+)"', html)
    order = "quality rows data training segments lists calibration users map costs versions"
    assert found == order.split()


def test_differences_are_paired_by_user(root: Path) -> None:
    run = read_night(Lake(root)).runs[0]
    measure = run.gate_measure()
    new, old = run.figures.get(measure), run.old.get(measure)
    drawn = np.array(new.replicates) - np.array(old.replicates)
    found = run.to_old(measure)
    assert measure == ("ndcg_at_k", 10) and run.before.run_id == "als-1" and found.paired
    assert (found.lower, found.upper) == tuple(np.percentile(drawn, [2.5, 97.5]))


def test_checks_tell_what_the_gate_compared(root: Path) -> None:
    als, model2, _ = read_night(Lake(root)).runs
    assert [check.passed for check in checks(als)] == [True] * 4
    assert verdict(als)[0] == "published" and verdict(model2)[0] == "refused"
    assert model2.before.run_id == "model2-1" and model2.published is None


def test_settings_that_changed_are_shown(page: Page) -> None:
    assert "als.rank 1 2" in page.text and "settings that differ from run als-1" in page.text


def test_users_without_a_vector_have_a_line_of_their_own(html: str, page: Page) -> None:
    chart = html[html.index("als: ndcg@10, users by vector") :].partition("</figure>")[0]
    texts = [part for part in re.findall(r">([^<>]+)<", chart) if "vector" in part or "all tested" in part]
    assert texts[-3:] == ["all tested users", "with a vector", "without a vector"]


def test_rows_add_up(page: Page) -> None:
    assert "sum 309 ✓ equal to the rows read" in page.text and "missing user id 5" in page.text


def test_ten_users_from_the_least_to_the_most_active(root: Path) -> None:
    found = gather(Lake(root)).users
    counts = [user.events for user in found]
    assert len(found) == 10 and counts == sorted(counts)
    assert all(len(user.new) == len(user.old) == 6 and len(user.history) == min(8, user.events) for user in found)
    assert "u1" not in render("lake", gather(Lake(root), users=0))


def test_history_ends_with_the_night(root: Path) -> None:
    for user in gather(Lake(root), ds=YESTERDAY).users:
        assert all(place.note[-10:] <= str(YESTERDAY) for place in user.history)


def test_counts_and_lists_are_those_of_the_tables(root: Path) -> None:
    lake = Lake(root)
    catalogue = read_catalogue(lake, TODAY)
    events = count_events(lake, TODAY, catalogue)
    rows = lake.read("interactions")
    assert (
        events.total == rows.num_rows == 600 == events.by_day.sum() == events.by_item.sum() == events.user_counts.sum()
    )
    assert count_events(lake, YESTERDAY, catalogue).total == 300
    run = read_night(lake).runs[0]
    made = read_lists(lake, run, catalogue, events)
    listed = lake.read("recommendations", None, run.partition)
    new = {(r["user_id"], r["item_id"]) for r in listed.to_pylist()}
    old = {(r["user_id"], r["item_id"]) for r in lake.read("recommendations", None, run.before.partition).to_pylist()}
    assert made.exposure.sum() == listed.num_rows and made.coverage == len({i for _, i in new}) / 60
    assert made.kept == pytest.approx(len(new & old) / len(new)) and made.fallback == 1 / 40
    users = sample_users(lake, run, made, events, TODAY, 3)
    assert [place.item_id for place in users[0].new] == [
        r["item_id"]
        for r in sorted(listed.to_pylist(), key=lambda r: r["position"])
        if r["user_id"] == users[0].user_id
    ]


def test_diversity_is_the_mean_distance_of_two_items_of_a_list(root: Path) -> None:
    lake = Lake(root)
    catalogue = read_catalogue(lake, TODAY)
    run = read_night(lake).runs[0]
    place = {item: n for n, item in enumerate(catalogue.ids.to_pylist())}
    by_user: dict[str, list[int]] = {}
    for row in lake.read("recommendations", None, run.partition).to_pylist():
        by_user.setdefault(row["user_id"], []).append(place[row["item_id"]])
    distances = []
    for items in by_user.values():
        unit = catalogue.member[items] / np.linalg.norm(catalogue.member[items].astype(float), axis=1, keepdims=True)
        distances.append(np.mean([1 - unit[a] @ unit[b] for a in range(6) for b in range(6) if a != b]))
    made = read_lists(lake, run, catalogue, count_events(lake, TODAY, catalogue))
    assert made.diversity == pytest.approx(np.mean(distances))


def test_gini_and_tail_of_known_counts() -> None:
    assert gini(np.array([1, 1, 1, 1])) == 0 and gini(np.array([0, 0, 0, 4])) == 0.75 and np.isnan(gini(np.zeros(3)))
    shares, held = held_by_top(np.array([1, 7, 2]), points=4)
    assert shares.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1]) and held.tolist() == pytest.approx([0, 0.7, 0.9, 1])


def test_the_plane_has_the_same_sign_for_mirrored_axes() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 4)) * [5, 3, 0.1, 0.1]
    points, explained = principal_plane(vectors)
    assert explained > 0.99
    assert np.allclose(points, (vectors - vectors.mean(axis=0))[:, :2], atol=0.5)


def test_intervals_are_the_outermost_quantiles(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "lake")
    lake = Lake(tmp_path / "lake")
    run = read_night(lake).runs[0]
    assert read_intervals(lake, run) is None
    write_predictions(tmp_path / "lake", "als", "als-2")
    found = read_intervals(lake, run)
    assert found.levels == (0.1, 0.9) and (np.diff(found.middle) >= 0).all()
    assert ((found.low < found.middle) & (found.middle < found.high)).all()
    text = Page(render("lake", gather(lake))).text
    assert "als: predictions with quantiles 10% to 90%" in text and WITHOUT_PREDICTIONS not in text
    assert WITHOUT_PREDICTIONS in Page(render("lake", gather(Lake(root)))).text


def test_reranking_shows_what_the_rules_cost_and_won(root: Path, tmp_path: Path, html: str) -> None:
    assert 'id="reranking"' not in html  # no run has rules
    shutil.copytree(root, tmp_path / "lake")
    write_reranked(tmp_path / "lake", "als-2")
    html = render("lake", gather(Lake(tmp_path / "lake")))
    section = html[html.index('<h2 id="reranking"') : html.index('<h2 id="calibration"')].rpartition("</section>")[0]
    text = Page(section).text
    assert "als, diversity=0.3" in text and "@5" not in text  # of the longest lists
    assert "ndcg@10 −0.0500 [−0.0500, −0.0500] 0.3000 0.2500" in text  # paired
    assert "coverage@10 +0.2500 0.5000 0.7500" in text and "intra_list_diversity@10 +0.1000" in text
    assert len(re.findall('class="n worse"', section)) == len(re.findall('class="n better"', section)) == 1


@pytest.mark.parametrize("model", ["als", "model2"])  # published and refused
def test_concepts_have_cards_with_their_most_common_items(root: Path, tmp_path: Path, model: str) -> None:
    shutil.copytree(root, tmp_path / "lake")
    write_concepts(tmp_path / "lake", model, f"{model}-2")
    text = Page(render("lake", gather(Lake(tmp_path / "lake")))).text
    assert "Concept 0 30 items" in text and "Concept 1 30 items" in text
    first = text.index("Concept 0")
    assert '<script>alert("x")</script>' in text[first : text.index("Concept 1", first)]  # the title of item 0


# Less than everything, and nothing.


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (("metrics",), "No run of this night has been evaluated."),
        (("interactions",), "The lake has no events up to this day."),
        (("recommendations",), "The runs have no lists."),
        (("item_factors",), "No item vectors: als, model2, model3."),
        (("published", "items"), "als, model2, model3"),
        (
            ("metrics", "interactions", "recommendations", "item_factors", "published", "items", "users"),
            "No users to show.",
        ),
    ],
    ids=str,
)
def test_what_is_absent_is_said_in_a_line(root: Path, tmp_path: Path, missing: tuple[str, ...], said: str) -> None:
    shutil.copytree(root, tmp_path / "lake", ignore=lambda folder, names: missing if folder == str(root) else ())
    assert said in Page(render("lake", gather(Lake(tmp_path / "lake")))).text


def test_runs_can_be_named(root: Path) -> None:
    night = read_night(Lake(root), ["model3-1", "als-1"])
    assert [run.run_id for run in night.runs] == ["model3-1", "als-1"] and night.ds == YESTERDAY
    assert [run.run_id for run in read_night(Lake(root), models=["model3"]).runs] == ["model3-2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run_ids": ["nope"]}, "no run 'nope' in lake .*: name one of the newest, "),
        ({"run_ids": ["clean-2"]}, "run 'clean-2' is of the job clean: name a run of a model, such as "),
        ({"ds": dt.date(1999, 1, 1)}, "no model was trained for 1999-01-01 in lake .*: the newest days are 2024-05-02"),
        ({"models": ["zzz"]}, "no run of model zzz in lake .*: there are runs of als, model2, model3"),
    ],
    ids=str,
)
def test_unknown_runs_and_days_are_one_line_with_the_cure(
    root: Path, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(NotFoundError, match=message) as raised:
        write_report(Lake(root), str(tmp_path / "page.html"), **options)
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_without_a_lake_or_a_writable_file_nothing_is_left(root: Path, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="no lake at"):
        write_report(Lake(tmp_path / "none"), str(tmp_path / "page.html"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"the report .* cannot be written"):
        write_report(Lake(root), str(tmp_path / "file" / "page.html"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
