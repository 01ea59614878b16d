"""Tables in a terminal of 80 columns: figures whole, titles cut, ids folded, columns that do not fit below."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparkcf.cli.layout import Column, blocks, share, shortened
from tests.cli.test_compare import MEASURED, write_comparison, write_figures
from tests.lake.test_query import MAY_2, publish, write_items, write_lists

LONG = "The Lord of the Rings: The Fellowship of the Ring, extended edition (2001)"
WIDE = "千と千尋の神隠し" * 8  # every letter is two columns wide


@pytest.fixture
def narrow(run, monkeypatch: pytest.MonkeyPatch):
    """The lines of a command's output on a terminal of 80 columns."""
    for name, value in {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)

    def lines(*words: str) -> list[str]:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)  # of the test's own standard output
        code, out, err = run(*words)
        assert (code, err) == (0, "")
        return re.sub("\x1b\\[[0-9;]*m", "", out).splitlines()

    return lines


def test_a_list_has_a_line_a_row_with_its_titles_cut(narrow, tmp_path: Path) -> None:
    items = {"1": LONG, "2": WIDE, "3": "Alien", "4": None}
    write_lists(tmp_path, "als", "r", MAY_2, {"u": list(items)})
    publish(tmp_path, "als", MAY_2, 1, "r")
    write_items(tmp_path, items)
    lines = narrow("recommend", "--user", "u", "--lake", str(tmp_path))
    rows = [line for line in lines if re.match(r" +\d ", line)]
    assert max(map(len, lines)) <= 80 and len(rows) == 4
    assert "The Lord of the Rings: The Fellow" in rows[0] and "…" in rows[0] and "extended" not in rows[0]
    assert "千と千尋の神隠し" in rows[1] and "…" in rows[1] and "Alien" in rows[2] and "…" not in rows[2]
    assert all(re.search(r" \d\.\d{4} +model", row) for row in rows)
    found = narrow("find", "ring", "--lake", str(tmp_path))
    assert max(map(len, found)) <= 80 and any(LONG[:50] in line for line in found)


def test_a_comparison_continues_below_with_its_figures_whole(narrow, tmp_path: Path) -> None:
    models = [("als", "als", "measured", None, MEASURED), ("small-ease", "ease", "measured", None, MEASURED)]
    write_comparison(tmp_path, 6, models)
    for name, value in (("als", 0.31), ("small-ease", 0.33)):
        write_figures(tmp_path, name, ("model", "ndcg_at_k", 100, value, [value, value + 0.01]))
    lines = narrow("compare", "--lake", str(tmp_path))
    cells = [re.split(r" {2,}", line.strip()) for line in lines]
    assert max(map(len, lines)) <= 80
    assert ["model", "ndcg@100", "difference"] in cells
    assert ["small-ease (ease)", "0.3300 [0.3200, 0.3400]", "+0.0200 [+0.0200, +0.0200]"] in cells
    assert ["model", "training", "pairs/s", "memory", "stored", "lists"] in cells  # no model has a note
    assert ["small-ease (ease)", "4.5 s", "20,000", "1.2 GB", "2.0 MB", "1.2 s"] in cells


def test_columns_share_the_room_that_the_figures_leave() -> None:
    figures = Column("ndcg", ["0.3100 [0.3000, 0.3200]"])
    titles, ids = Column("title", ["t" * 90]), Column("item_id", ["i" * 20])
    assert figures.whole and not titles.whole and not Column("title", ["2001"]).whole
    (block,) = blocks([ids, figures, titles], 80)
    assert [width for _, width in block] == [20, 23, 80 - 4 - 2 * 3 - 20 - 23] and block[2][0].cells[0][-1] == "…"
    assert len(blocks([ids, figures, figures, figures], 80)) == 2
    assert [width for _, width in blocks([ids, figures, titles], 10**6)[0]] == [20, 23, 90]
    assert share([5, 100, 100], 85) == 40 and share([5, 6], 85) == 6 and share([50, 50], 20) == 16
    assert shortened("abcdef", 4) == "abc…" and shortened("abcd", 4) == "abcd"
