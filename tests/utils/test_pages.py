import base64

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


@pytest.mark.parametrize(("value", "options", "expected"), [
    (None, {}, "–"), (0.12345, {}, "0.123"), (6513184, {"decimals": 0}, "6,513,184"),
    (0.5, {"sign": "+"}, "+0.500"), (-0.5, {"sign": "+", "decimals": 1}, "-0.5"),
])
def test_numbers_are_written_for_readers(value, options, expected):
    assert pages.number_text(value, **options) == expected
