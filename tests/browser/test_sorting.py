"""The script that sorts tables, in a browser."""

import pytest

from tests.browser.conftest import needs_chromium
from utils.pages import Markup, document, element, table

pytestmark = needs_chromium

HEAD = ["Night", "Score", "Calls", "Share", "Change", "Place", "Picture"]
BAR = Markup('<svg class="range" aria-hidden="true" width="9" height="9"><rect width="9" height="9"/></svg>')


def scored(number):
    """Return a cell as pages write them: a number, a picture of it, and its interval, which says something else."""
    return Markup(f"{number}{BAR}{element('span', f'{1 - number:.3f} to 1.000', kind='interval')}")


ROWS = [["night 10", scored(0.731), "1,234", "35%", "+0.02", "wood", BAR],
        ["night 9", None, "987", "100%", "-0.5", None, BAR],
        ["Night 1", scored(0.4), "1e+06", "9%", "-10.0", "Äcker", BAR],
        ["dawn", scored(0.95), "987", None, "+0.02", "field", BAR]]
AS_THEY_WERE = [row[0] for row in ROWS]


@pytest.fixture
def page(visits, tmp_path):
    parts = [table(HEAD, ROWS), table(["Short", "Number"], [["a", 1], ["b", 2]]),
             table(["Unlike", "Number"], [["a", 1], ["b", 2], ["c", 3]], sorts=False),
             table(["Setting", "Value"], [["a", 1], ["b", 2], ["c", 3]], kind="settings")]
    (tmp_path / "page.html").write_text(document("Nights", parts), encoding="utf-8")
    yield visits.open(tmp_path / "page.html")
    assert visits.complaints == []


def rows_of(page):
    return page.locator("tbody").first.locator("th").all_inner_texts()


def button_of(page, title):
    return page.get_by_role("button", name=title, exact=True)


def sorted_by(page):
    marked = page.locator("[aria-sort]")
    return list(zip(marked.all_inner_texts(), marked.evaluate_all("titles => titles.map(title => title.ariaSort)")))


@pytest.mark.parametrize(("title", "first", "rows", "reversed_rows"), [
    # of equal ones the first stays first; what is undefined is last either way
    ("Score", "descending", ["dawn", "night 10", "Night 1", "night 9"], ["Night 1", "night 10", "dawn", "night 9"]),
    ("Calls", "descending", ["Night 1", "night 10", "night 9", "dawn"], ["night 9", "dawn", "night 10", "Night 1"]),
    ("Share", "descending", ["night 9", "night 10", "Night 1", "dawn"], ["Night 1", "night 10", "night 9", "dawn"]),
    ("Change", "descending", ["night 10", "dawn", "night 9", "Night 1"], ["Night 1", "night 9", "night 10", "dawn"]),
    ("Place", "ascending", ["Night 1", "dawn", "night 10", "night 9"], ["night 10", "dawn", "Night 1", "night 9"]),
    ("Night", "ascending", ["dawn", "Night 1", "night 9", "night 10"], ["night 10", "night 9", "Night 1", "dawn"]),
])
def test_a_column_sorts_both_ways_and_back(page, title, first, rows, reversed_rows):
    second = {"descending": "ascending", "ascending": "descending"}[first]
    for expected, mark in ((rows, [(title, first)]), (reversed_rows, [(title, second)]), (AS_THEY_WERE, [])):
        button_of(page, title).click()
        assert rows_of(page) == expected and sorted_by(page) == mark


def test_one_column_at_a_time_is_the_sorted_one(page):
    button_of(page, "Calls").click()
    button_of(page, "Place").click()
    assert sorted_by(page) == [("Place", "ascending")]
    button_of(page, "Calls").click()  # begins anew
    assert sorted_by(page) == [("Calls", "descending")]


def test_rows_stay_whole(page):
    before = sorted(page.locator("tbody").first.locator("tr").all_inner_texts())
    button_of(page, "Score").click()
    assert sorted(page.locator("tbody").first.locator("tr").all_inner_texts()) == before


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_keys_sort_and_show_where_they_are(page, key):
    page.keyboard.press("Tab")  # to the table, which can be scrolled
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Score"
    style, width = page.evaluate("(({outlineStyle, outlineWidth}) => [outlineStyle, parseFloat(outlineWidth)])"
                                 "(getComputedStyle(document.activeElement))")
    assert style == "solid" and width >= 2
    page.keyboard.press(key)
    assert rows_of(page) == ["dawn", "night 10", "Night 1", "night 9"]


def test_only_columns_that_compare_like_with_like_sort(page):
    # not a column of pictures, two rows, rows of different kinds, settings
    assert page.get_by_role("button").all_inner_texts() == HEAD[:-1]


def test_the_policy_stops_what_was_not_escaped(visits, tmp_path):
    run = "document.title = 'run'"
    hostile = Markup(f'<img src="https://example.org/a.png" onerror="{run}"><script>{run}</script>'
                     f'<iframe src="https://example.org/"></iframe><a href="javascript:{run}">here</a>')
    (tmp_path / "page.html").write_text(document("Safe", [hostile]), encoding="utf-8")
    page = visits.open(tmp_path / "page.html")
    page.get_by_role("link", name="here").click()
    assert page.title() == "Safe"
    refused = [told for told in visits.complaints if "Content Security Policy" in told]
    for what in ("inline event handler", "inline script", "the image", "Framing", "JavaScript URL"):
        assert any(what in told for told in refused), what
    assert "failed: https://example.org/a.png csp" in visits.complaints  # before it was sent
