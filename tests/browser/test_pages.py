"""The pages that people open, as a browser shows them: a real evaluation, one of detections, an audit."""

import itertools
import re

import numpy as np
import pandas as pd
import pytest

from tests.browser.conftest import needs_chromium
from tests.utils.evaluation.test_detections import MANY, recording
from tests.utils.evaluation.test_detections_page import report as write_detections
from tests.utils.evaluation.test_page import describe, evaluation_of
from tests.utils.evaluation.test_page import write_page as write_report
from tests.utils.evaluation.test_run import evaluated, legacy_file, manifest  # noqa: F401
from tests.utils.preparation.test_audit import file_row, label_row
from tests.utils.preparation.test_audit_page import finding, tone, write_wav
from tests.utils.preparation.test_audit_page import write_page as write_audit
from tests.utils.test_pages import READABLE, contrast
from tests.utils.test_reports import predict

pytestmark = needs_chromium

NAMES = ("report", "detections", "audit")
HOSTILE = "<img src=x onerror=\"alert('run')\"><script>alert('run')</script>"
PHONE, NARROWEST = {"width": 390, "height": 844}, {"width": 320, "height": 568}
PAPER = {"width": 680, "height": 1000}  # A4 between its margins, at the 96 dots an inch of CSS
SORTED_BY = {"report": "F1", "detections": "Annotated", "audit": "Balanced accuracy"}
UNFOLD = "all => all.forEach(details => { details.open = true; })"
SCROLLED = """region => new Promise(done => {
  const look = left => region.scrollLeft || !left ? done(region.scrollLeft) : setTimeout(look, 50, left - 1);
  look(100);
})"""
PLAY = """async audios => {
  const wait = seconds => new Promise(done => setTimeout(done, 1000 * seconds));
  return Promise.all(audios.map(async audio => {
    audio.muted = true;
    await Promise.race([audio.play(), wait(30)]);
    for (let turn = 0; turn < 600 && audio.currentTime === 0; turn++) await wait(0.05);
    return { played: audio.currentTime, seconds: audio.duration, error: audio.error?.message ?? null };
  }));
}"""
COLOURS = """() => {
  const colour = text => text.match(/[\\d.]+/g).map(Number);
  const backOf = element => {
    for (let each = element; each; each = each.parentElement) {
      const [red, green, blue, opacity] = colour(getComputedStyle(each).backgroundColor);
      if (opacity !== 0) return [red, green, blue];
    }
  };
  const own = element => [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data).join("");
  const told = [...document.querySelectorAll("main, main *")].filter(element => own(element).trim());
  return told.map(element => [own(element).trim(), colour(getComputedStyle(element).color).slice(0, 3),
                              backOf(element)]);
}"""


def audit_page(folder, *, name="bird", message="something in them"):
    """Write an audit of three recordings, one of which cannot be read."""
    paths = [f"{name}/a.wav", "frog/b.wav", "owl/broken.wav"]
    for path in ("bird/a.wav", "frog/b.wav"):
        write_wav(folder / "audio" / path, tone(1.0))
    files = [file_row(path, duration_seconds=90.0) for path in paths[:2]]
    files.append(file_row(paths[2], status="corrupt", reason=message, duration_seconds=None))
    confounds = pd.DataFrame([
        {"property": key, "balanced_accuracy": accuracy, "chance": 0.5, "null_limit": 0.6,
         "predictive": accuracy > 0.6, "example": message, "advice": ""}
        for key, accuracy in (("duration", 0.75), ("site", 1.0), ("level", 0.5))])
    found = [finding(*paths[:2], severity=severity, message=message) for severity in ("error", "warning", "note")]
    labels = pd.DataFrame([label_row(path) for path in paths])
    write_audit(folder, folder / "audio", (pd.DataFrame(files), labels), found, confounds=confounds)
    return folder / "audit.html"


@pytest.fixture(scope="module")
def paths(evaluated, tmp_path_factory):  # noqa: F811
    """Write the three pages; return where they are."""
    folder = tmp_path_factory.mktemp("pages")
    write_detections(folder, MANY)
    return {"report": evaluated[0] / "report.html", "detections": folder / "report.html", "audit": audit_page(folder)}


def text_of(page):
    return " ".join(page.locator("main").inner_text().split())


@pytest.mark.parametrize("name", NAMES)
def test_everything_loads_and_nothing_goes_wrong(visits, paths, name):
    page = visits.open(paths[name])
    widths = page.locator("img").evaluate_all("images => images.map(image => image.complete && image.naturalWidth)")
    assert (len(widths) > 0) and all(widths)
    assert visits.complaints == []


@pytest.mark.parametrize("name", ["report", "audit"])
def test_sounds_play(visits, paths, name):
    page = visits.open(paths[name])
    sounds = page.locator("audio").evaluate_all(PLAY)
    assert sounds and visits.complaints == []
    for sound in sounds:
        assert sound["error"] is None and sound["seconds"] > 0.5 and sound["played"] > 0, sound


@pytest.mark.parametrize("name", NAMES)
def test_tables_sort(visits, paths, name):
    page = visits.open(paths[name])
    button = page.get_by_role("button", name=SORTED_BY[name], exact=True).first
    column = button.evaluate("button => button.parentElement.cellIndex")
    rows = button.locator("xpath=ancestor::table/tbody/tr")
    before = rows.all_inner_texts()
    for mark, sign in (("descending", -1), ("ascending", 1)):
        button.click()
        told = rows.evaluate_all(f"rows => rows.map(row => row.cells[{column}].firstChild.textContent)")
        numbers = [float(text.rstrip("%")) for text in told if text != "–"]
        assert len(set(numbers)) > 1 and numbers == sorted(numbers, key=lambda number: sign * number)
        assert told[len(numbers):] == ["–"] * (len(told) - len(numbers))
        assert button.evaluate("button => button.parentElement.ariaSort") == mark
        assert sorted(rows.all_inner_texts()) == sorted(before)
    assert visits.complaints == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_without_its_script_says_the_same(visits, paths, name):
    bare = visits.open(paths[name], java_script_enabled=False)
    assert bare.get_by_role("button").count() == 0
    assert text_of(bare) == text_of(visits.open(paths[name]))


@pytest.mark.parametrize("name", NAMES)
def test_who_cannot_see_it_is_told_what_there_is(visits, paths, name):
    page = visits.open(paths[name])
    page.locator("details").evaluate_all(UNFOLD)
    tree = page.locator("body").aria_snapshot()
    named = re.findall(r'^ *- (?:img|link|button|region|navigation) "', tree, flags=re.MULTILINE)
    unnamed = re.findall(r"^ *- (?:img|link|button|region|navigation)\b(?! \").*", tree, flags=re.MULTILINE)
    assert len(named) > 10 and unnamed == []
    assert page.locator("html").get_attribute("lang") == "en" and page.get_by_role("main").count() == 1
    assert all(page.locator("audio").evaluate_all("audios => audios.map(audio => audio.ariaLabel)"))
    assert all(page.locator("img").evaluate_all("images => images.map(image => image.alt)"))
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map(heading => Number(heading.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_the_headings(visits, paths, name):
    page = visits.open(paths[name])
    links = page.get_by_role("navigation").get_by_role("link")
    assert links.all_inner_texts() == page.locator("h2").all_inner_texts()
    links.last.click()
    assert page.locator("h2:target").inner_text() == links.last.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_every_text_can_be_read(visits, paths, name, scheme):
    page = visits.open(paths[name], color_scheme=scheme)
    told = page.evaluate(COLOURS)
    is_light = sum(told[0][2]) > 3 * 128
    assert len(told) > 50 and is_light == (scheme == "light")
    assert {text: round(contrast(colour, back), 2) for text, colour, back in told
            if contrast(colour, back) < READABLE} == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_phone_scrolls_tables_but_not_the_page(visits, paths, name):
    page = visits.open(paths[name], viewport=PHONE)
    page.locator("details").evaluate_all(UNFOLD)
    for viewport in (PHONE, NARROWEST):
        page.set_viewport_size(viewport)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    regions = page.locator(".scroll")
    wide = regions.evaluate_all("regions => regions.findIndex(region => region.scrollWidth > region.clientWidth)")
    regions.nth(wide).press("ArrowRight")
    assert regions.nth(wide).evaluate(SCROLLED) > 0


@pytest.mark.parametrize("name", NAMES)
def test_paper_cuts_nothing_off_and_is_white(visits, paths, name):
    page = visits.open(paths[name], viewport=PAPER, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.get_by_role("navigation").is_visible()
    too_wide = page.locator("table").evaluate_all(
        "(tables, width) => tables.filter(table => table.offsetWidth > width).map(table => table.tHead.innerText)",
        PAPER["width"])
    assert too_wide == []
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF") and len(printed) > 10_000


def test_names_of_strangers_do_not_run(visits, tmp_path):
    model = describe(HOSTILE, *predict(np.random.default_rng(11)))
    write_report(tmp_path / "evaluation.html", evaluation_of(model))
    write_detections(tmp_path, [recording(HOSTILE, [(0, 1, HOSTILE, 0.9)], [(0, 1, "owl")])])
    audit_page(tmp_path, name=HOSTILE.replace("/", ""), message=HOSTILE)
    for name in ("evaluation.html", "report.html", "audit.html"):
        page = visits.open(tmp_path / name)
        assert "onerror=\"alert('run')\"" in text_of(page) and page.locator("img[src=x], main script").count() == 0
    assert visits.complaints == []
