import base64
import re

import pytest

from utils import pages

HOSTILE = "<script>alert(\"x\")</script>'"
SAFE = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&#x27;"


def test_a_document_escapes_text_and_keeps_markup():
    page = pages.document(HOSTILE, [HOSTILE, pages.element("p", "told", kind="note")], css=".own { color: red; }")
    assert page.startswith("<!DOCTYPE html>") and page.endswith("</html>\n")
    assert page.count(SAFE) == 3 and HOSTILE not in page  # window, heading and text
    assert '\n<p class="note">told</p>\n' in page
    assert page.index(".scroll") < page.index(".own { color: red; }") < page.index("</style>")


def test_elements_escape_what_is_in_them_once():
    inner = pages.element("span", HOSTILE)
    assert inner == f"<span>{SAFE}</span>"
    assert pages.element("div", inner, " & ", None) == f"<div>{inner} &amp; –</div>"


def test_a_table_escapes_cells_titles_and_caption():
    markup = pages.table(["A", HOSTILE], [[HOSTILE, None], [1, pages.Markup("<b>2</b>")]], caption=HOSTILE,
                         kind="settings")
    assert HOSTILE not in markup and markup.count(SAFE) == 3
    assert f'<tr><th scope="row">{SAFE}</th><td>–</td></tr>' in markup
    assert '<tr><th scope="row">1</th><td><b>2</b></td></tr>' in markup
    assert f"<caption>{SAFE}</caption>" in markup and '<table class="settings">' in markup
    assert "<caption>" not in pages.table(["A"], [])


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


@pytest.mark.parametrize(("value", "options", "expected"), [
    (None, {}, "–"), (0.12345, {}, "0.123"), (6513184, {"decimals": 0}, "6,513,184"),
    (0.5, {"sign": "+"}, "+0.500"), (-0.5, {"sign": "+", "decimals": 1}, "-0.5"),
])
def test_numbers_are_written_for_readers(value, options, expected):
    assert pages.number_text(value, **options) == expected
