"""The review page as a person uses it: with keys and with clicks, and what it hands back goes into training again."""

import csv
import json
import re

import numpy as np
import pytest
import soundfile

from scripts import predict_efficientnet, preprocess_enhanced
from tests.browser.conftest import needs_chromium
from tests.browser.test_pages import COLOURS, HOSTILE, NARROWEST, PHONE, PLAY
from tests.conftest import TINY_RATE, tiny_sound, write_audio
from tests.scripts.processes import TINY_FLAGS
from tests.utils.prediction.test_outputs import RECORDER, scored
from tests.utils.prediction.test_review_page import OneClip, night, write_review
from tests.utils.test_pages import READABLE, contrast
from utils.audio.annotations import DECISION_COLUMNS, read_decisions
from utils.audio.recorders import RecorderFacts
from utils.prediction.review_choice import ReviewItem
from utils.prediction.review_clips import SMALL, ClipJob, ClipMaker

pytestmark = needs_chromium

ODD_NAME = 'night, "so-called" ß.wav'
ODD_LABEL = '=tawny, "brown" owl ß'
MOST_BYTES = 60e6
RATE = 22_050
# of a key until its detection can be seen: the picture is decoded, and the next frame is due
NEXT_SHOWN = """async () => {
  const picture = document.getElementById("spectrogram"), before = performance.now();
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "y", bubbles: true, cancelable: true }));
  await picture.decode();
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - before;
}"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Write a review: four owls, two of them in a recording with an odd name and a day later, and a fox."""
    folder = tmp_path_factory.mktemp("review")
    later = RecorderFacts(started=RECORDER.started.replace(day=3, hour=3))
    recordings = [night(folder, "a.wav", 0.9, 0.75, 0.2), night(folder, ODD_NAME, 0.8, 0.95, recorder=later, seed=2)]
    return write_review(folder / "night.html", recordings)


def id_of(page, name):
    return page.locator(f"#{name}")


def focused(page):
    """Return which row is in focus, counted from 0 among those that are shown, and its heading."""
    rows = page.locator("#list li:not([hidden]) button")
    current = rows.evaluate_all("rows => rows.findIndex(row => row.ariaCurrent === 'true')")
    return current, id_of(page, "name").inner_text()


def told(page):
    return id_of(page, "told").inner_text()


def rows_of(page):
    return page.locator("#list li:not([hidden])").count()


def downloaded(page, folder):
    with page.expect_download() as download:
        id_of(page, "download").click()
    target = folder / download.value.suggested_filename
    download.value.save_as(target)
    return target


def table_of(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def without_clock(rows):
    """Return the rows of a table of decisions without when they were made, which is told to the second in UTC."""
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row.pop("reviewed_at")) for row in rows)
    return [tuple(row.values()) for row in rows]


# decisions

def test_keys_decide_and_the_table_tells_it(visits, path, tmp_path):
    page = visits.open(path)
    assert focused(page) == (0, "owl, 0.90") and id_of(page, "count").inner_text() == "0 of 5 decided"
    page.keyboard.press("y")
    assert focused(page) == (1, "owl, 0.75") and told(page) == "owl confirmed."
    page.keyboard.press("n")
    assert focused(page) == (2, "owl, 0.80") and told(page) == "owl rejected."
    page.keyboard.press("r")
    page.keyboard.type(ODD_LABEL)
    page.keyboard.press("Enter")
    assert focused(page) == (3, "owl, 0.95") and told(page) == f"owl relabelled as {ODD_LABEL}."
    page.keyboard.press("r")
    page.keyboard.press("1")  # the first of the classes that it may be instead
    assert told(page) == "owl relabelled as fox."
    page.keyboard.press("Enter")
    assert told(page) == "fox confirmed. All that are shown are decided."
    assert id_of(page, "count").inner_text() == "5 of 5 decided"

    table = downloaded(page, tmp_path)
    first, second = str(path.parent / "a.wav"), str(path.parent / ODD_NAME)
    assert table.name == "night.decisions.csv"
    assert table.read_text(encoding="utf-8").splitlines()[0] == ",".join(DECISION_COLUMNS)
    assert without_clock(table_of(table)) == [
        (first, "0", "1", "owl", "0.9", "confirmed", "owl"), (first, "1", "2", "owl", "0.75", "rejected", ""),
        (second, "0", "1", "owl", "0.8", "relabelled", ODD_LABEL),
        (second, "1", "2", "owl", "0.95", "relabelled", "fox"), (first, "2", "3", "fox", "0.8", "confirmed", "fox")]
    assert [(sound.file_path, sound.start_seconds, sound.label) for sound in read_decisions(table)] == [
        (first, 0, "owl"), (first, 1, "environmental_sound"), (second, 0, ODD_LABEL), (second, 1, "fox"),
        (first, 2, "fox")]
    assert visits.complaints == []


def test_buttons_decide_too(visits, path, tmp_path):
    page = visits.open(path)
    for name in ("Confirm", "Reject"):
        page.get_by_role("button", name=name, exact=True).click()
    page.get_by_role("button", name="Relabel", exact=True).click()
    dialog = page.get_by_role("dialog", name="What is it?")
    dialog.get_by_role("combobox", name="Class").fill(" wren ")
    dialog.get_by_role("button", name="Take the name").click()
    page.locator("#list button").last.click()
    assert focused(page) == (4, "fox, 0.80")
    page.get_by_role("button", name="Relabel", exact=True).click()
    assert "wren" in id_of(page, "choices").inner_text()  # a name that was used is offered
    id_of(page, "choices").get_by_role("button", name="owl").click()
    rows = table_of(downloaded(page, tmp_path))
    assert [(row["model_class"], row["decision"], row["label"]) for row in rows] == [
        ("owl", "confirmed", "owl"), ("owl", "rejected", ""), ("owl", "relabelled", "wren"),
        ("fox", "relabelled", "owl")]
    assert visits.complaints == []


def test_the_key_after_a_click_does_not_click_again(visits, path):
    page = visits.open(path)
    id_of(page, "confirm").click()
    page.keyboard.press("Space")
    page.wait_for_function("!document.getElementById('sound').paused")
    assert id_of(page, "count").inner_text() == "1 of 5 decided"


def test_a_button_that_was_reached_by_keys_is_pressed_by_keys(visits, path):
    page = visits.open(path)
    id_of(page, "reject").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Space")
    assert [row["decision"] for row in page.evaluate("[...decisions.values()]")] == ["rejected", "rejected"]


def test_the_models_class_as_a_new_name_confirms(visits, path):
    page = visits.open(path)
    page.keyboard.press("r")
    page.keyboard.type("owl")
    page.keyboard.press("Enter")
    assert told(page) == "owl confirmed."
    page.keyboard.press("r")
    page.keyboard.press("Enter")  # nothing was written
    assert page.get_by_role("dialog", name="What is it?").is_visible()
    page.keyboard.press("Escape")
    assert id_of(page, "count").inner_text() == "1 of 5 decided"


def test_decisions_are_taken_back_one_by_one(visits, path):
    page = visits.open(path)
    for key in ("y", "n", "ArrowLeft", "y"):
        page.keyboard.press(key)  # the second one is decided twice
    assert id_of(page, "count").inner_text() == "2 of 5 decided"
    for words, n_decided in (("owl is rejected", 2), ("owl is not decided", 1), ("owl is not decided", 0)):
        page.keyboard.press("u")
        assert words in told(page) and id_of(page, "count").inner_text() == f"{n_decided} of 5 decided"
    assert focused(page)[0] == 0
    page.keyboard.press("u")
    assert told(page) == "Nothing to take back." and id_of(page, "download").is_disabled()


def test_a_visit_that_was_ended_loses_nothing_and_is_not_ended_unasked(visits, path):
    page = visits.open(path)
    page.keyboard.press("y")
    page.keyboard.press("n")
    with page.expect_event("dialog"):
        page.evaluate("() => { setTimeout(() => location.reload()); }")
    assert visits.complaints == ["dialog: "]
    again = page.context.new_page()
    again.goto(path.as_uri())
    assert told(again) == "2 decisions of an earlier visit are kept." and focused(again)[0] == 2
    assert again.locator("#list li").evaluate_all("rows => rows.map(row => row.className)") == [
        "confirmed", "rejected", "", "", ""]
    again.keyboard.press("ArrowLeft")
    again.keyboard.press("u")
    assert id_of(again, "count").inner_text() == "1 of 5 decided"


def test_whoever_has_downloaded_may_leave(visits, path, tmp_path):
    page = visits.open(path)
    page.keyboard.press("y")
    downloaded(page, tmp_path)
    page.reload()
    assert visits.complaints == [] and id_of(page, "count").inner_text() == "1 of 5 decided"


def test_a_browser_that_keeps_nothing_says_so_and_works(visits, path, tmp_path):
    page = visits.browser.new_context().new_page()
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied'); } });")
    page.goto(path.as_uri())
    page.keyboard.press("y")
    assert "keeps nothing" in id_of(page, "kept").inner_text()
    assert [row["decision"] for row in table_of(downloaded(page, tmp_path))] == ["confirmed"]


# finding one's way

def test_arrows_go_through_what_is_shown(visits, path):
    page = visits.open(path)
    for key, place in (("ArrowRight", 1), ("j", 2), ("ArrowDown", 3), ("k", 2), ("ArrowLeft", 1), ("ArrowUp", 0)):
        page.keyboard.press(key)
        assert focused(page)[0] == place
    page.keyboard.press("ArrowLeft")
    assert told(page) == "This is the first one." and focused(page)[0] == 0


def test_filters_leave_what_they_say(visits, path):
    page = visits.open(path)
    id_of(page, "class").select_option("fox")
    assert rows_of(page) == 1 and focused(page) == (0, "fox, 0.80")
    assert id_of(page, "count").inner_text() == "0 of 1 shown decided, 0 of all 5"
    id_of(page, "class").select_option("")
    id_of(page, "confidence").fill("0.85")
    assert rows_of(page) == 2 and id_of(page, "least").inner_text() == "0.85"
    id_of(page, "confidence").fill("0")
    id_of(page, "from").fill("2024-05-02")
    assert rows_of(page) == 2 and "05-03" in id_of(page, "days").inner_html()
    id_of(page, "from").fill("2024-05-01")
    id_of(page, "to").fill("2024-05-01")
    assert rows_of(page) == 3
    id_of(page, "to").fill("2024-04-30")
    assert rows_of(page) == 0 and told(page) == "No detection passes these filters."
    assert id_of(page, "confirm").is_disabled()
    id_of(page, "detection").focus()
    page.keyboard.press("y")
    assert page.evaluate("decisions.size") == 0
    for name in ("from", "to"):
        id_of(page, name).fill("")
    assert rows_of(page) == 5 and visits.complaints == []


def test_a_filter_of_what_is_not_decided_empties_itself(visits, path):
    page = visits.open(path)
    id_of(page, "decided").select_option("not decided")
    id_of(page, "detection").focus()
    for n_left in (4, 3, 2, 1, 0):
        page.keyboard.press("n")
        assert rows_of(page) == n_left
    id_of(page, "decided").select_option("rejected")
    assert rows_of(page) == 5


def test_keys_of_a_field_are_the_fields(visits, path):
    page = visits.open(path)
    id_of(page, "class").focus()
    page.keyboard.press("y")
    id_of(page, "confidence").focus()
    page.keyboard.press("ArrowRight")
    assert id_of(page, "least").inner_text() == "0.01" and page.evaluate("decisions.size") == 0
    page.keyboard.press("Control+r")  # the browser's, and not that of relabelling
    assert not id_of(page, "relabelling").is_visible()


def test_the_least_confident_can_come_first(visits, path):
    page = visits.open(path)
    id_of(page, "order").select_option("least confident first")
    shares = page.locator("#list button > span").all_inner_texts()
    assert shares == ["0.75", "0.80", "0.80", "0.90", "0.95"]
    id_of(page, "detection").focus()
    page.keyboard.press("Home")
    page.locator("#list button").first.click()
    page.keyboard.press("y")
    assert focused(page) == (1, "owl, 0.80")


def test_what_is_suggested_comes_first_with_its_reason(visits, tmp_path):
    suggested = [ReviewItem(recording=str(tmp_path / "a.wav"), start_seconds=1.0, end_seconds=2.0, model_class="fox",
                            confidence=0.51, reason="uncertain between fox and owl")]
    page = visits.open(write_review(tmp_path / "review.html", [night(tmp_path, "a.wav", 0.9, 0.49)],
                                    suggested=suggested))
    assert focused(page) == (0, "fox, 0.51") and id_of(page, "reason").inner_text() == suggested[0].reason
    page.keyboard.press("ArrowRight")
    assert focused(page) == (1, "owl, 0.90") and not id_of(page, "reason").is_visible()


def test_activity_counts_what_is_not_rejected(visits, path):
    page = visits.open(path)
    assert id_of(page, "hours").get_attribute("aria-label") == "Most detections: 3, 20"
    assert id_of(page, "days").get_attribute("aria-label") == "Most detections: 3, 05-01"
    bars = page.locator("#days rect.found").evaluate_all("bars => bars.map(bar => bar.height.baseVal.value)")
    assert len(bars) == 2 and bars[0] == pytest.approx(1.5 * bars[1])
    for key in "nny":
        page.keyboard.press(key)
    assert id_of(page, "days").get_attribute("aria-label") == "Most detections: 2, 05-03"
    kinds = page.locator("#days rect").evaluate_all("bars => bars.map(bar => bar.className.baseVal)")
    assert kinds == ["found", "sure", "found"]


# seeing and hearing

def test_pictures_are_seen_and_sounds_are_heard(visits, path):
    page = visits.open(path)
    for _ in range(5):
        assert page.wait_for_function("document.getElementById('spectrogram').complete && "
                                      "document.getElementById('spectrogram').naturalWidth > 100")
        assert id_of(page, "spectrogram").get_attribute("alt") == f"Spectrogram of {focused(page)[1].split(',')[0]}"
        sound, = id_of(page, "sound").evaluate_all(PLAY)
        assert sound["error"] is None and sound["seconds"] > 1.9 and sound["played"] > 0
        page.keyboard.press("ArrowRight")
    assert visits.complaints == []


def test_space_plays_and_stops_and_a_plays_each_as_it_comes(visits, path):
    page = visits.open(path)
    is_playing = "() => !sound.paused && sound.currentTime > 0".replace("sound", "document.getElementById('sound')")
    page.keyboard.press("Space")
    page.wait_for_function(is_playing)
    page.wait_for_selector("#playhead:not([hidden])")
    assert id_of(page, "play").inner_text() == "Stop"
    page.keyboard.press("Space")
    assert id_of(page, "sound").evaluate("sound => sound.paused")
    page.keyboard.press("a")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(is_playing)
    page.wait_for_timeout(500)  # a browser writes what it keeps a little later
    page.reload()
    assert id_of(page, "autoplay").is_checked()


def test_what_surrounds_a_short_detection_is_told_from_it(visits, path):
    page = visits.open(path)
    page.keyboard.press("ArrowRight")  # second 1 to 2, of which 0 to 3 is shown
    frame, plot = (id_of(page, name).bounding_box() for name in ("frame", "plot"))
    assert (frame["x"] - plot["x"]) / plot["width"] == pytest.approx(1 / 3, abs=0.02)
    assert frame["width"] / plot["width"] == pytest.approx(1 / 3, abs=0.02)


def test_what_cannot_be_shown_is_told_and_can_be_decided(visits, tmp_path):
    page = visits.open(write_review(tmp_path / "review.html", [scored(tmp_path / "gone.wav", 0.9),
                                                               night(tmp_path, "here.wav", 0.8)]))
    assert "gone.wav cannot be opened" in id_of(page, "problem").inner_text()
    assert id_of(page, "play").is_disabled() and not id_of(page, "picture").is_visible()
    page.keyboard.press("Space")
    page.keyboard.press("n")
    assert id_of(page, "picture").is_visible() and not id_of(page, "problem").is_visible()
    assert visits.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(visits, path, scheme):
    page = visits.open(path, color_scheme=scheme)
    for key in ("y", "n", "r"):
        page.keyboard.press(key)
    found = [one for one in page.evaluate(COLOURS) if not one[0].startswith("{")]
    is_light = sum(found[0][2]) > 3 * 128
    assert len(found) > 40 and is_light == (scheme == "light")
    assert {text: round(contrast(colour, back), 2) for text, colour, back in found
            if contrast(colour, back) < READABLE} == {}


def test_a_phone_shows_it_without_scrolling_sideways(visits, path):
    page = visits.open(path, viewport=PHONE)
    page.keyboard.press("r")
    for viewport in (PHONE, NARROWEST):
        page.set_viewport_size(viewport)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    page.keyboard.press("Escape")
    top = page.evaluate("scrollY")
    for _ in range(4):
        page.keyboard.press("y")
    assert page.evaluate("scrollY") == top  # the list scrolls, the page stays
    sizes = page.locator("#detection .actions button").evaluate_all("all => all.map(one => one.offsetHeight)")
    assert min(sizes) >= 44  # of a finger


def test_who_cannot_see_it_is_told_what_there_is(visits, path):
    page = visits.open(path)
    page.keyboard.press("n")
    tree = page.locator("body").aria_snapshot()
    assert re.findall(r"^ *- (?:img|link|button|region|list|textbox|combobox|slider|progressbar)\b(?! \").*", tree,
                      flags=re.MULTILINE) == []
    assert 'button "owl, 0.90, 2024-05-01 20:00:00, rejected"' in tree
    assert page.locator("[role=status]").inner_text() == "owl rejected."
    levels = page.locator("h1, h2").evaluate_all("all => all.map(heading => Number(heading.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert page.locator("#list [tabindex='0']").count() == 1  # one stop for the tabulator, not one a detection
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keys").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("y")
    assert page.evaluate("decisions.size") == 2


def test_a_page_without_its_script_says_what_it_needs(visits, path):
    page = visits.open(path, java_script_enabled=False)
    assert "A review needs JavaScript" in page.locator("main").inner_text()
    assert page.get_by_role("button").count() == 0


def test_names_of_strangers_do_not_run(visits, tmp_path):
    item = ReviewItem(recording=HOSTILE, start_seconds=0.0, end_seconds=1.0, model_class=HOSTILE, confidence=0.5,
                      reason=HOSTILE)
    page = visits.open(write_review(tmp_path / "review.html", [night(tmp_path, "a.wav", 0.9)], suggested=[item]))
    page.keyboard.press("r")
    page.keyboard.type(HOSTILE + "2")
    page.keyboard.press("Enter")
    rows = table_of(downloaded(page, tmp_path))
    assert [(row["model_class"], row["label"]) for row in rows] == [(HOSTILE, HOSTILE + "2")]
    assert page.locator("img[src=x], main script:not([type])").count() == 0
    assert visits.complaints == []


def test_no_key_is_lost_however_fast_they_come(visits, tmp_path):
    path = write_review(tmp_path / "review.html", [night(tmp_path, "a.wav", *[0.9, 0.1] * 20)])
    page = visits.open(path)
    for number in range(40):
        page.keyboard.press("yyynr"[number % 5])
        if number % 5 == 4:
            page.keyboard.press("1")
    assert id_of(page, "count").inner_text() == "40 of 40 decided"
    decided = page.evaluate("[...decisions].sort(([a], [b]) => a - b).map(([, each]) => each.decision[0]).join('')")
    assert decided == 8 * "cccrr" and visits.complaints == []


# many

def test_two_thousand_detections_are_small_and_quick(visits, tmp_path, capsys):
    recordings = [night(tmp_path, f"{number}.wav", *[0.9, 0.1] * 5, seed=number) for number in range(200)]
    noise = 0.3 * np.random.default_rng(1).standard_normal(10 * RATE)
    soundfile.write(tmp_path / "noise.wav", noise, RATE)  # what compresses least
    _, clip = next(ClipMaker(SMALL, RATE, 50.0, RATE / 2)(ClipJob(str(tmp_path / "noise.wav"), [0], [(0.0, 10.0)])))
    path = write_review(tmp_path / "review.html", recordings, executor=OneClip(clip))
    assert path.stat().st_size < MOST_BYTES
    page = visits.open(path)
    assert page.locator("#list li").count() == 2000 and focused(page)[0] == 0
    times = sorted(page.evaluate(NEXT_SHOWN) for _ in range(20))
    assert id_of(page, "count").inner_text() == "20 of 2000 decided" and focused(page)[0] == 20
    with capsys.disabled():
        print(f"\n2,000 detections: {path.stat().st_size / 1e6:.1f} MB; from a key to the next one shown:"
              f" {times[10]:.0f} ms, at most {times[-1]:.0f} ms")
    assert visits.complaints == []


# the way back into training

def test_what_was_decided_is_what_the_next_model_learns_from(visits, tiny_model, tmp_path, rng):
    audio = tmp_path / "audio"
    for name in ("bird_song", "mammal_call", "amphibian_call"):
        write_audio(audio / "wood" / f"{name}.wav", tiny_sound(name, seconds=2.0, rng=rng))
    review = tmp_path / "review.html"
    assert predict_efficientnet.main([
        "--model_path", str(tiny_model.best), "--input", str(audio), "--output", str(tmp_path / "results.json"),
        "--segment_mode", "--no_threshold", "--review", str(review), "--workers", "1", "--backend", "torch"]) == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["predictions"]
    expected = {}
    page = visits.open(review)
    for number in range(6):
        item = page.evaluate("items[current]")
        key, label = [("y", item["name"]), ("n", "environmental_sound"), ("r", "wren")][number % 3]
        page.keyboard.press(key)
        if key == "r":
            page.keyboard.type(label)
            page.keyboard.press("Enter")
        expected[item["file"].rpartition("/")[2], item["start"]] = label
    assert len(expected) == len(results) == 6
    table = downloaded(page, tmp_path)
    assert visits.complaints == []
    assert preprocess_enhanced.main(["--input_dir", str(audio), "--annotations", str(table), "--output_dir",
                                     str(tmp_path / "dataset"), "--workers", "1", *TINY_FLAGS]) == 0
    windows = [row for side in ("train", "val", "test") for row in table_of(tmp_path / "dataset" / f"{side}.csv")]
    assert {(row["source_path"].rpartition("/")[2], float(row["start_seconds"])): row["class_name"]
            for row in windows} == expected
    assert TINY_RATE == 8000 and len(windows) == 6
