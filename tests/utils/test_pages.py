import base64
import hashlib
import json
import re

import pytest

from utils import pages

HOSTILE = "<script>alert(\"x\")</script>'"
SAFE = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&#x27;"
READABLE = 4.5  # to 1: contrast of text, https://www.w3.org/TR/WCAG22/#contrast-minimum


def contrast(one, other):
    """Return the contrast of two colours, each red, green and blue of 0..255, as WCAG 2.2 defines it."""
    def luminance(colour):
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
                  for part in (value / 255 for value in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def colours_of(rules):
    """Return the colours that CSS variables stand for, the last of each name."""
    found = re.findall(r"(--\w+): #([0-9a-f]{3,6});", rules)
    wide = {name: digits if len(digits) == 6 else "".join(2 * digit for digit in digits) for name, digits in found}
    return {name: tuple(bytes.fromhex(digits)) for name, digits in wide.items()}


def test_a_document_escapes_text_and_keeps_markup():
    page = pages.document(HOSTILE, [HOSTILE, pages.element("p", "told", kind="note")], css=".own { color: red; }")
    assert page.startswith("<!DOCTYPE html>") and page.endswith("</html>\n")
    assert page.count(SAFE) == 3 and HOSTILE not in page  # window, heading and text
    assert '\n<p class="note">told</p>\n' in page
    assert page.index(".scroll") < page.index(".own { color: red; }") < page.index("</style>")


def test_the_policy_of_a_document_lets_its_own_script_run_and_loads_nothing():
    page = pages.document("Title", [HOSTILE])
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    assert page.index("Content-Security-Policy") < page.index("<style>")
    (script,) = re.findall("<script>(.*?)</script>", page, flags=re.DOTALL)
    assert script == pages.SCRIPT and page.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    assert dict(rule.split(" ", 1) for rule in policy.split("; ")) == {
        "default-src": "'none'", "img-src": "data:", "media-src": "data:", "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{digest}'", "base-uri": "'none'", "form-action": "'none'"}


def test_a_streamed_document_takes_its_parts_one_by_one_and_runs_its_own_script():
    taken = []

    def parts():
        for part in (HOSTILE, pages.element("h2", "told")):
            taken.append(part)
            yield part

    pieces = pages.streamed_document(HOSTILE, parts(), css=".own {}", script="let own;")
    head = next(pieces)
    assert taken == [] and SAFE in head and ".own {}" in head and HOSTILE not in head
    assert next(pieces) == f"{SAFE}\n" and len(taken) == 1
    assert next(pieces) == "<h2>told</h2>\n"
    end, = pieces
    digest = base64.b64encode(hashlib.sha256(b"let own;").digest()).decode("ascii")
    assert "<script>let own;</script>" in end and f"script-src 'sha256-{digest}'" in head


@pytest.mark.parametrize("value", [HOSTILE, {"<!--": ["</script>", 1.5, None]}, "\u2028 ß \udce9"])
def test_data_come_back_as_they_were_and_end_no_element(value):
    block = pages.data_block('a"', value)
    assert block.startswith('<script type="application/json" id="a&quot;">') and block.endswith("</script>")
    text = block[block.index(">") + 1:-len("</script>")]
    assert "<" not in text and json.loads(text) == value


def test_data_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        pages.data_block("a", float("nan"))


def test_headings_are_linked_above_the_first_where_there_are_three():
    headings = [pages.element("h2", title) for title in ("One", HOSTILE, "Three")]
    page = pages.document("Title", ["First of all", *headings, pages.element("h3", "Deeper"), "<h2>no heading</h2>"])
    links = re.findall(r'<li><a href="#([^"]*)">(.*?)</a></li>', page)
    assert re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', page) == links
    assert [title for _, title in links] == ["One", SAFE, "Three"] and len(dict(links)) == 3
    assert page.index("First of all") < page.index("<nav ") < page.index("<h2 ")
    assert "<nav" not in pages.document("Title", headings[:2])


def test_elements_escape_what_is_in_them_once():
    inner = pages.element("span", HOSTILE)
    assert inner == f"<span>{SAFE}</span>"
    assert pages.element("div", inner, " & ", None) == f"<div>{inner} &amp; –</div>"


def test_a_table_escapes_cells_titles_and_caption():
    markup = pages.table(["A", HOSTILE], [[HOSTILE, None], [1, pages.Markup("<b>2</b>")]], caption=HOSTILE,
                         kind="settings")
    assert HOSTILE not in markup and markup.count(SAFE) == 4  # and what its region is called
    assert f'<tr><th scope="row">{SAFE}</th><td>–</td></tr>' in markup
    assert '<tr><th scope="row">1</th><td><b>2</b></td></tr>' in markup
    assert f"<caption>{SAFE}</caption>" in markup and '<table class="settings">' in markup
    assert "<caption>" not in pages.table(["A"], [])


def test_a_table_says_what_it_is_where_it_scrolls():
    assert '<div class="scroll" tabindex="0" role="region" aria-label="Told">' in pages.table(["A"], [], caption="Told")
    assert f'aria-label="A, {SAFE}">' in pages.table(["A", HOSTILE], [])


@pytest.mark.parametrize(("options", "kinds"), [
    ({}, ' class="sorts"'), ({"kind": "words"}, ' class="words sorts"'), ({"sorts": False}, ""),
    ({"kind": "settings"}, ' class="settings"'), ({"kind": "words", "sorts": False}, ' class="words"'),
])
def test_a_table_sorts_unless_its_rows_are_of_different_kinds(options, kinds):
    assert f"<table{kinds}>" in pages.table(["A"], [["a"]], **options)


def test_a_figure_holds_its_picture(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG and so on")
    markup = pages.figure(HOSTILE, tmp_path / "picture.png")
    assert HOSTILE not in markup and markup.count(SAFE) == 2  # caption and alternative text
    data = markup.split('src="data:image/png;base64,')[1].split('"')[0]
    assert base64.b64decode(data) == b"\x89PNG and so on"


def test_a_player_holds_its_sound_and_says_what_it_is():
    markup = pages.audio_player(HOSTILE, b"\xff\xfb and so on")
    assert markup.startswith("<audio controls ") and f'aria-label="{SAFE}"' in markup and HOSTILE not in markup
    data = markup.split('src="data:audio/mpeg;base64,')[1].split('"')[0]
    assert base64.b64decode(data) == b"\xff\xfb and so on"


def test_dark_pages_change_every_colour_that_all_pages_use():
    page = pages.document("Title", [], css=pages.DARK_CSS)
    light, dark = page.split("prefers-color-scheme: dark")
    used = set(re.findall(r"var\((--\w+)\)", light))
    assert used and used <= set(re.findall(r"(--\w+):", light)) and used <= set(re.findall(r"(--\w+):", dark))
    assert "prefers-color-scheme" not in pages.document("Title", [])


def test_text_can_be_read_by_day_and_by_night():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    light, dark = map(colours_of, pages.document("Title", [], css=pages.DARK_CSS).split("prefers-color-scheme: dark"))
    for colours in (light, dark):
        for text in ("--text", "--faint", "--accent"):
            for back in ("--back", "--raised"):
                assert contrast(colours[text], colours[back]) >= READABLE, (text, back)


@pytest.mark.parametrize(("value", "options", "expected"), [
    (None, {}, "–"), (0.12345, {}, "0.123"), (6513184, {"decimals": 0}, "6,513,184"),
    (0.5, {"sign": "+"}, "+0.500"), (-0.5, {"sign": "+", "decimals": 1}, "-0.5"),
])
def test_numbers_are_written_for_readers(value, options, expected):
    assert pages.number_text(value, **options) == expected
