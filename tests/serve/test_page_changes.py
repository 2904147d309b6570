"""What the page keeps, shows and sends when the model, the picture, the confidence or the classes shown change."""

from __future__ import annotations

import json
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from playwright.sync_api import expect

from nextdetr.serve.run import start
from tests.browser import drop, video
from tests.serve.conftest import CLASSES, INFO, FakeEngine, client, fake_opens, scene
from tests.serve.test_page import count, drag, names, on_canvas

OTHERS = ["lion", "wolf"]


class Named(FakeEngine):
    """Finds the same under other names, as far as there are names."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def finish(self, job, output):
        result, picture = super().finish(job, output)
        result["detections"] = [row for row in result["detections"] if row["class_id"] < len(self.classes)]
        for row in result["detections"]:
            row["class_name"] = self.classes[row["class_id"]]
        return result, picture


@pytest.fixture
def two_models(tmp_path):
    """A server of two models with other classes."""
    engines = {"a": Named(CLASSES), "b": Named(OTHERS)}

    def opens(source, config):
        return engines[source], {**INFO, "classes": engines[source].classes}

    with start("one=a", "two=b", opens=opens, corrections=tmp_path / "corrected") as server:
        server.folder, server.engines = tmp_path / "corrected", engines
        yield server


def downloaded(page, kind):
    with page.expect_download() as waiting:
        page.locator(f"[data-download={kind}]").click()
    return waiting.value.path()


def choose_first_and_move(page):
    page.locator("#objects button").first.click()
    page.keyboard.press("ArrowRight")


def test_what_was_corrected_keeps_its_classes_when_another_model_is_chosen(open_page, two_models):
    page = open_page(server=two_models)
    drop(page, ("corrected.jpg", scene()))
    count(page, 3)
    choose_first_and_move(page)
    page.locator("#model").select_option("two")
    expect(page.locator("#classes li")).to_have_count(5)
    colours = "swatches => swatches.map((swatch) => swatch.style.background)"
    of_classes, of_objects = (page.locator(f"{part} .swatch").evaluate_all(colours) for part in ("#classes", "#objects"))
    assert of_objects == of_classes[:3]  # which have changed
    drop(page, ("other.jpg", scene((320, 240))))
    count(page, 2)  # the other picture is open
    classes = [*OTHERS, *CLASSES]
    images = json.loads(downloaded(page, "json").read_text())["images"]
    found = [[(row["class_id"], row["class_name"]) for row in image["detections"]] for image in images]
    assert found == [[(2, "cat"), (3, "dog"), (4, "bird")], [(0, "lion"), (1, "wolf")]]
    coco = json.loads(downloaded(page, "coco").read_text())
    assert [category["name"] for category in coco["categories"]] == classes
    assert [row["category_id"] for row in coco["annotations"]] == [3, 4, 5, 1, 2]
    with zipfile.ZipFile(downloaded(page, "yolo")) as archive:
        rows = archive.read("labels/train/corrected.txt").decode().splitlines()
        assert [row.split()[0] for row in rows] == ["2", "3", "4"]
        assert [line.split(": ")[1] for line in archive.read("data.yaml").decode().splitlines()[3:]] == [
            json.dumps(name) for name in classes
        ]
    page.locator("#strip button").first.click()
    page.get_by_role("button", name="Save this picture").click()
    expect(page.locator("#saved")).to_contain_text("Saved")
    saved = json.loads((two_models.folder / "annotations" / "instances_train.json").read_text())
    assert saved["images"][0]["model"] == "one"
    assert [category["name"] for category in saved["categories"]] == CLASSES


def test_what_was_saved_stays_corrected_when_a_later_change_is_undone(open_page, two_models):
    """The picture counted as unchanged then, and the next model replaced its boxes."""
    page = open_page(server=two_models)
    drop(page, ("a.jpg", scene()))
    count(page, 3)
    choose_first_and_move(page)
    page.get_by_role("button", name="Save this picture").click()
    expect(page.locator("#strip .mark")).to_have_text("✓")
    choose_first_and_move(page)
    page.keyboard.press("Control+z")
    expect(page.locator("#strip .mark")).to_have_text("3*")
    page.locator("#model").select_option("two")
    assert names(page) == CLASSES


def test_an_error_of_one_model_is_not_shown_beside_the_result_of_another(open_page, two_models):
    page = open_page(server=two_models)
    two_models.engines["a"].broken = lambda value: True
    drop(page, ("a.jpg", scene()))
    expect(page.get_by_role("alert")).to_be_visible()
    page.locator("#model").select_option("two")
    count(page, 2)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_class_without_boxes_is_left_out_again(open_page):
    page = open_page()
    drop(page, ("a.jpg", scene()))
    count(page, 3)
    page.locator("#objects button").first.click()
    for name in ("cta", "cat"):  # misspelt at first
        page.locator("#canvas").focus()
        page.keyboard.press("r")
        page.keyboard.type(name)
        page.keyboard.press("Enter")
        assert names(page)[0] == name
    expect(page.locator("#classes li")).to_have_count(3)
    assert b"cta" not in downloaded(page, "coco").read_bytes()


def test_no_box_is_added_where_a_result_would_replace_it(open_page):
    engine = FakeEngine()
    with start("fake", opens=fake_opens(engine)) as server:
        page = open_page(server=server)
        drop(page, ("a.jpg", scene()))
        count(page, 3)
        page.get_by_role("button", name="Add a box").click()
        engine.gate.clear()
        drop(page, ("b.jpg", scene()))
        expect(page.locator("#strip [aria-selected=true]")).to_have_attribute("title", "b.jpg")
        drag(page, (500, 40), (600, 120))
        engine.gate.set()
        count(page, 3)
        expect(page.locator("#strip .mark").nth(1)).to_have_text("3")
        expect(page.get_by_role("button", name="Undo")).to_be_disabled()
        drag(page, (500, 40), (600, 120))
        count(page, 4)


def test_a_new_box_is_shown_although_its_class_was_hidden(open_page):
    page = open_page()
    drop(page, ("a.jpg", scene()))
    count(page, 3)
    page.get_by_label("cat").uncheck()
    count(page, 2)
    page.get_by_role("button", name="Add a box").click()
    drag(page, (500, 40), (600, 120))
    count(page, 4)
    expect(page.locator("#objects .chosen input")).to_have_value("cat")
    page.keyboard.press("Enter")
    page.get_by_label("cat").uncheck()
    page.locator("#canvas").focus()
    page.keyboard.press("a")
    count(page, 5)


@pytest.mark.parametrize("kind", ["json", "coco", "yolo"])
def test_changes_are_not_lost_without_a_question(open_page, kind):
    page = open_page()
    leaves = "() => window.dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    drop(page, ("a.jpg", scene()))
    count(page, 3)
    assert page.evaluate(leaves)
    choose_first_and_move(page)
    assert not page.evaluate(leaves)
    downloaded(page, "picture")
    assert not page.evaluate(leaves)
    downloaded(page, kind)
    assert page.evaluate(leaves)
    page.keyboard.press("ArrowRight")
    assert not page.evaluate(leaves)


def test_no_key_changes_a_box_that_is_not_shown(open_page):
    page = open_page()
    drop(page, ("a.jpg", scene()))
    count(page, 3)
    page.mouse.click(*on_canvas(page, 100, 400))  # the bird
    expect(page.locator("#objects .chosen")).to_have_count(1)
    page.locator("#threshold").fill("0.5")
    count(page, 2)
    expect(page.get_by_role("button", name="Delete")).to_be_disabled()
    page.locator("#canvas").focus()
    for key in ("Delete", "ArrowRight"):
        page.keyboard.press(key)
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    page.locator("#threshold").fill("0.05")
    count(page, 3)


def test_a_line_is_no_box(open_page):
    page = open_page()
    drop(page, ("a.jpg", scene()))
    count(page, 3)
    page.get_by_role("button", name="Add a box").click()
    drag(page, (500, 40), (600, 40))
    count(page, 3)
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    page.get_by_role("button", name="Add a box").click()
    page.mouse.click(*on_canvas(page, 450, 300))  # the dog
    drag(page, (352, 144), (352, 408))  # its upper left corner onto the lower left
    count(page, 3)
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()


def test_a_saved_picture_is_saved_again_where_another_confidence_shows_other_boxes(open_page, running):
    page, save = open_page(), "Save this picture"
    drop(page, ("again.jpg", scene()))
    count(page, 3)
    page.locator("#threshold").fill("0.5")
    for boxes, confidence in ((2, "0.05"), (3, "0.06")):
        page.get_by_role("button", name=save).click()
        expect(page.get_by_role("button", name=save)).to_be_disabled()
        expect(page.locator("#strip .mark")).to_have_text("✓")
        data = json.loads((running.folder / "annotations" / "instances_train.json").read_text())
        number = next(image["id"] for image in data["images"] if image["source_name"] == "again.jpg")
        assert sum(row["image_id"] == number for row in data["annotations"]) == boxes
        page.locator("#threshold").fill(confidence)
        if boxes == 2:
            expect(page.locator("#strip .mark")).to_have_text("3")
            expect(page.get_by_role("button", name=save)).to_be_enabled()
    expect(page.get_by_role("button", name=save)).to_be_disabled()  # the boxes are the same


def test_thresholds_of_the_model_below_the_slider_are_kept(open_page):
    class Faint(FakeEngine):
        def finish(self, job, output):
            result, picture = super().finish(job, output)
            if job.settings["confidence"] <= 0.03:
                result["detections"].append(
                    {"box": [500, 40, 600, 120], "confidence": 0.03, "class_id": 2, "class_name": "bird"}
                )
            return result, picture

    own = {**INFO, "thresholds": {"cat": 0.5, "dog": 0.5, "bird": 0.03}}
    with start("fake", opens=lambda source, config: (Faint(), own)) as server:
        page = open_page(server=server)
        drop(page, ("a.jpg", scene()))
        count(page, 4)
        page.locator("#threshold").fill("0.05")
        count(page, 3)


def test_a_camera_that_is_allowed_after_it_was_closed_is_not_used(open_page):
    page = open_page()
    page.evaluate(
        """() => {
            const media = navigator.mediaDevices, ask = media.getUserMedia.bind(media);
            media.getUserMedia = (wanted) => new Promise((resolve) => {
                globalThis.allow = async () => { globalThis.given = await ask(wanted); resolve(globalThis.given); };
            });
        }"""
    )
    page.get_by_role("button", name="Use the camera").click()
    page.locator("#stop").click()
    page.evaluate("allow()")
    until = time.monotonic() + 20
    while page.evaluate("given.getTracks()[0].readyState") != "ended":
        assert time.monotonic() < until
        page.wait_for_timeout(20)
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#player")).to_be_hidden()


def test_a_video_goes_on_when_a_busy_server_has_time_again(open_page):
    engine = FakeEngine()
    engine.gate.clear()
    with start("fake", opens=fake_opens(engine), queue=1) as server, ThreadPoolExecutor(1) as pool, client(server) as other:
        pool.submit(other.post, "/predict", content=scene())
        assert engine.entered.acquire(timeout=20)  # it fills the queue
        page = open_page(server=server)
        page.set_input_files("#video", files=[{"name": "a.webm", "mimeType": "video/webm", "buffer": video()}])
        expect(page.locator("#player")).to_be_visible()
        until = time.monotonic() + 20
        while 'nextdetr_refused_total{model="fake",reason="queue"}' not in other.get("/metrics").text:
            assert time.monotonic() < until
        engine.gate.set()
        count(page, 3)
        expect(page.locator("#player")).to_be_visible()
        expect(page.get_by_role("alert")).to_be_hidden()


def test_a_kept_frame_is_opened_instead_of_the_video(open_page):
    page = open_page()
    page.set_input_files("#video", files=[{"name": "a.webm", "mimeType": "video/webm", "buffer": video()}])
    count(page, 3)
    page.get_by_role("button", name="Keep this frame").click()
    page.locator("#strip button").click()
    expect(page.locator("#player")).to_be_hidden()
    expect(page.locator("#strip [aria-selected=true]")).to_have_count(1)
    expect(page.get_by_role("button", name="Add a box")).to_be_enabled()
    count(page, 3)


def test_pictures_are_looked_at_once_the_server_answers(open_page):
    page = open_page()
    page.route("**/models", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    with page.expect_event("requestfailed"):
        drop(page, ("a.jpg", scene()))
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    page.unroute("**/models")
    drop(page, ("b.jpg", scene()))
    count(page, 3)
    expect(page.locator("#strip .mark").first).to_have_text("3")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_phone_does_not_scroll_the_page_under_the_finger(open_page):
    page = open_page(390, 560, has_touch=True, is_mobile=True)
    drop(page, *((f"{number}.jpg", scene((64, 48))) for number in range(12)))
    count(page, 3)
    expect(page.locator("#strip .mark").last).to_have_text("3")
    page.mouse.click(*on_canvas(page, 100, 400))
    expect(page.locator("#objects .chosen")).to_have_count(1)
    assert page.evaluate("scrollY") == 0
    page.evaluate("scrollBy(0, document.getElementById('strip').getBoundingClientRect().bottom + 20)")
    place = page.evaluate("scrollY")
    page.evaluate("document.querySelector('#classes input').click()")
    count(page, 2)
    assert page.evaluate("scrollY") == place > 200


def test_the_strip_stays_where_the_user_scrolled_it(open_page):
    page = open_page()
    drop(page, *((f"{number}.jpg", scene((64, 48))) for number in range(20)))
    count(page, 3)
    expect(page.locator("#strip .mark").last).to_have_text("3")
    page.evaluate("document.getElementById('strip').scrollLeft = 200")
    page.locator("#threshold").fill("0.5")
    count(page, 2)
    assert page.evaluate("document.getElementById('strip').scrollLeft") == 200
    page.keyboard.press("[")  # there is none before the first
    for _ in range(19):
        page.keyboard.press("]")
    expect(page.locator("#strip button").last).to_have_attribute("aria-selected", "true")
    expect(page.locator("#strip button").last).to_be_in_viewport(ratio=0.9)
