"""The page in Debian's Chromium: ``make browser`` installs it, and without it these tests fail."""

from __future__ import annotations

import json
import time
import zipfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from nextdetr.data.sources import load_data
from nextdetr.serve import streams
from nextdetr.serve.run import start
from tests.browser import cut_off, drop, unnamed, video
from tests.serve.conftest import FOUND, INFO, FakeEngine, client, encoded, fake_opens, scene

WIDTH, HEIGHT = 640, 480


def on_canvas(page, x, y):
    """Where a pixel of the picture lies on the screen."""
    box = page.locator("#canvas").bounding_box()
    scale = min(box["width"] / WIDTH, box["height"] / HEIGHT)
    left, top = (box["width"] - WIDTH * scale) / 2, (box["height"] - HEIGHT * scale) / 2
    return box["x"] + left + x * scale, box["y"] + top + y * scale


def drag(page, start, end):
    page.mouse.move(*on_canvas(page, *start))
    page.mouse.down()
    page.mouse.move(*on_canvas(page, (start[0] + end[0]) / 2, (start[1] + end[1]) / 2))
    page.mouse.move(*on_canvas(page, *end))
    page.mouse.up()


def colour_at(page, x, y):
    """Colour of the screen at a pixel of the picture."""
    place = on_canvas(page, x, y)
    clip = {"x": round(place[0]) - 1, "y": round(place[1]) - 1, "width": 3, "height": 3}
    picture = np.asarray(Image.open(BytesIO(page.screenshot(clip=clip))).convert("RGB"))
    return picture.reshape(-1, 3)


def names(page):
    row = "row.querySelector('input')?.value ?? row.children[1].textContent"
    return page.locator("#objects li").evaluate_all(f"rows => rows.map(row => {row})")


def pixels(number):
    (x1, y1, x2, y2), _, _ = FOUND[number]
    return [x1 * WIDTH, y1 * HEIGHT, x2 * WIDTH, y2 * HEIGHT]


def count(page, number):
    expect(page.locator("#count")).to_have_text(str(number))


def test_what_is_dropped_is_looked_at_and_the_sliders_ask_nothing_more(open_page):
    page = open_page()
    drop(page, ("scene.jpg", scene()), ("other.png", encoded(size=(WIDTH, HEIGHT))))
    count(page, 3)
    expect(page.locator("#strip button")).to_have_count(2)
    expect(page.locator("#strip .mark").nth(1)).to_have_text("3")
    x1, y1, x2, y2 = pixels(0)
    blue = [0x1F, 0x9B, 0xFF]
    for x, y in ((x1, (y1 + y2) / 2), ((x1 + x2) / 2, y2)):
        assert (abs(colour_at(page, x, y).astype(int) - blue).max(axis=1) < 40).any()
    asked = len(page.requested)
    page.locator("#threshold").fill("0.5")
    count(page, 2)
    page.locator("#threshold").fill("0.8")
    count(page, 1)
    assert names(page) == ["cat"]
    page.locator("#threshold").fill("0.05")
    page.get_by_label("dog").uncheck()
    count(page, 2)
    assert names(page) == ["cat", "bird"]
    assert len(page.requested) == asked


def test_corrections_by_mouse_are_saved_as_training_reads_them(open_page, running):
    page = open_page()
    content = scene()
    drop(page, ("cells/scene.jpg", content))
    count(page, 3)
    drag(page, (200, 180), (230, 200))  # move the cat by 30, 20
    x1, y1, x2, y2 = pixels(1)
    page.mouse.click(*on_canvas(page, 450, 300))
    drag(page, (x2, y2), (x2 - 50, y2 - 60))  # resize the dog
    page.mouse.click(*on_canvas(page, 100, 400))
    page.keyboard.press("Delete")  # the bird
    page.get_by_role("button", name="Add a box").click()
    drag(page, (500, 40), (600, 120))
    page.keyboard.type("mouse")  # its class has the cursor
    page.keyboard.press("Enter")
    count(page, 3)
    page.get_by_role("button", name="Save this picture").click()
    expect(page.locator("#saved")).to_contain_text("Saved")
    data = load_data(running.folder, "train", on_bad_data="error")
    assert data.classes == ["cat", "dog", "bird", "mouse"]
    (record,) = data.records
    assert record.path.read_bytes() == content
    saved = {data.classes[label]: box for label, box in zip(record.labels, record.boxes, strict=True)}
    cat = np.add(pixels(0), [30, 20, 30, 20])
    expected = {"cat": cat, "dog": [x1, y1, x2 - 50, y2 - 60], "mouse": [500, 40, 600, 120]}
    assert saved.keys() == expected.keys()
    for name, box in expected.items():
        np.testing.assert_allclose(saved[name], box, atol=2, err_msg=name)


def test_what_is_changed_while_it_is_saved_is_not_taken_for_saved(open_page):
    page, held = open_page(), []
    page.route("**/corrections", lambda route: held.append(route))  # noqa: PLW0108 - playwright marks what it calls
    drop(page, ("scene.jpg", scene()))
    count(page, 3)
    save = page.get_by_role("button", name="Save this picture")
    save.click()
    while not held:
        page.wait_for_timeout(20)
    page.mouse.click(*on_canvas(page, 450, 300))
    page.keyboard.press("ArrowRight")
    held.pop().continue_()
    expect(page.locator("#saved")).to_contain_text("Saved")
    expect(save).to_be_enabled()
    save.click()
    while not held:
        page.wait_for_timeout(20)
    held.pop().continue_()
    expect(save).to_be_disabled()


def test_everything_can_be_done_by_the_keyboard_and_undone(open_page):
    page = open_page()
    drop(page, ("scene.jpg", scene()), ("other.jpg", scene()))
    count(page, 3)
    page.locator("#objects button").first.focus()
    page.keyboard.press("Enter")
    for key in ("ArrowRight", "Shift+ArrowDown", "Alt+ArrowRight", "r"):
        page.keyboard.press(key)
    page.keyboard.type("lion")
    page.keyboard.press("Enter")
    assert names(page) == ["lion", "dog", "bird"]
    page.keyboard.press("a")
    page.keyboard.press("Enter")
    count(page, 4)
    page.keyboard.press("Delete")
    count(page, 3)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="JSON").click()
    box = json.loads(waiting.value.path().read_text())["images"][0]["detections"][0]["box"]
    np.testing.assert_allclose(box, np.add(pixels(0), [1, 10, 2, 10]), atol=1e-3)
    page.locator("#canvas").focus()
    for _ in range(6):
        page.keyboard.press("Control+z")
    assert names(page) == ["cat", "dog", "bird"]
    page.keyboard.press("Escape")
    for chosen in ("cat", "dog", "bird"):
        page.keyboard.press("Tab")
        expect(page.locator("#objects .chosen input")).to_have_value(chosen)
    expect(page.get_by_role("status").filter(has_text="bird")).to_have_text("bird 0.34, 3 / 3")
    page.keyboard.press("Shift+Tab")
    expect(page.locator("#objects .chosen input")).to_have_value("dog")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # after the last object it leaves the picture
    expect(page.locator("#canvas")).not_to_be_focused()
    page.keyboard.press("]")
    expect(page.locator("#strip [aria-selected=true]")).to_have_attribute("title", "other.jpg")
    page.keyboard.press("?")
    expect(page.locator("#shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#shortcuts")).to_be_hidden()


def test_all_downloads_are_what_they_say(open_page, tmp_path):
    page = open_page()
    drop(page, ("scene.jpg", scene()), ("scene.png", encoded(size=(WIDTH, HEIGHT))))
    count(page, 3)
    expect(page.locator("#strip .mark").nth(1)).to_have_text("3")
    files = {}
    for kind in ("json", "coco", "yolo", "picture"):
        with page.expect_download() as waiting:
            page.locator(f"[data-download={kind}]").click()
        files[kind] = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(files[kind])
    result = json.loads(files["json"].read_text())
    assert [(image["name"], len(image["detections"])) for image in result["images"]] == [("scene.jpg", 3), ("scene.png", 3)]
    coco = json.loads(files["coco"].read_text())
    assert (len(coco["images"]), len(coco["annotations"]), len(coco["categories"])) == (2, 6, 3)
    with zipfile.ZipFile(files["yolo"]) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "yolo")
    data = load_data(tmp_path / "yolo" / "data.yaml", "train", on_bad_data="error")
    assert (len(data.records), data.classes) == (2, ["cat", "dog", "bird"])
    for record in data.records:
        np.testing.assert_allclose(record.boxes, [pixels(number) for number in range(3)], atol=0.01)
    with Image.open(files["picture"]) as picture:
        assert (picture.size, files["picture"].name) == ((WIDTH, HEIGHT), "scene-boxes.png")
        line = picture.convert("RGB").getpixel((round(pixels(0)[0]), 200))
        np.testing.assert_allclose(line, (0x1F, 0x9B, 0xFF), atol=20)


def test_what_is_wrong_is_said_in_a_sentence(open_page):
    with start("fake", opens=fake_opens(FakeEngine())) as server:
        page = open_page(server=server)
        expect(page.locator("#saving")).to_be_hidden()  # nothing is saved there
        drop(page, ("broken.jpg", scene()[:3000]), ("fine.jpg", scene()))
        expect(page.get_by_role("alert")).to_contain_text("broken.jpg cannot be read")
        expect(page.locator("#strip .failed")).to_have_count(1)
        page.locator("#strip button").nth(1).click()
        count(page, 3)
        expect(page.get_by_role("alert")).to_be_hidden()
        drop(page, ("notes.txt", b"no picture"))
        expect(page.get_by_role("alert")).to_contain_text("notes.txt is neither a picture nor a video")
    drop(page, ("late.jpg", scene()))
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")


def test_a_model_with_thresholds_of_its_own_begins_with_them(open_page):
    own = {**INFO, "thresholds": {"cat": 0.95, "dog": 0.5, "bird": 0.1}}
    with start("fake", opens=lambda source, config: (FakeEngine(), own)) as server:
        page = open_page(server=server)
        drop(page, ("scene.jpg", scene()))
        count(page, 2)
        assert names(page) == ["dog", "bird"]
        page.locator("#threshold").fill("0.8")
        count(page, 1)
        page.get_by_role("button", name="own for each class").click()
        count(page, 2)


def test_a_calibrated_model_says_so_and_a_picture_unlike_the_training_is_flagged(open_page, tmp_path):
    class Wary(FakeEngine):
        def finish(self, job, output):
            result, picture = super().finish(job, output)
            return {**result, "unlikeness": 1.5, "unlike_training": True}, picture

        def check_confidence(self, confidence):
            pass

    known = {**INFO, "calibrated": {"threshold": 0.02, "recall": 0.95}, "confidence": "calibrated"}
    with start("fake", opens=lambda source, config: (Wary(), known)) as other:
        page = open_page(server=other)
        button = page.get_by_role("button", name="Calibrated: misses at most 5 % on average")
        expect(button).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#unlike")).to_be_hidden()
        drop(page, ("a.jpg", scene()))
        count(page, 3)
        assert any("confidence=0.02" in url for url in page.requested)
        expect(page.locator("#unlike")).to_have_text(
            "This picture is unlike those of the training, so the result is in doubt."
        )
        page.screenshot(path=tmp_path / "unlike.png")
        page.locator("#threshold").fill("0.8")
        expect(button).to_have_attribute("aria-pressed", "false")
        count(page, 1)
        button.click()
        count(page, 3)
        with page.expect_download() as found:
            page.get_by_role("button", name="JSON").click()
        (image,) = json.loads(found.value.path().read_text())["images"]
        assert (image["unlikeness"], image["unlike_training"]) == (1.5, True)
        page.get_by_role("button", name="中文").click()
        expect(page.get_by_role("button", name="平均漏检不超过 5 %")).to_be_visible()


def test_the_key_is_asked_for_once_and_again_where_it_is_wrong(open_page):
    with start("fake", opens=fake_opens(FakeEngine()), api_key="open sesame") as server:
        page = open_page(server=server, keys=("guess", "open sesame"))
        drop(page, ("scene.jpg", scene()))
        count(page, 3)
        page.set_input_files("#video", files=[{"name": "a.webm", "mimeType": "video/webm", "buffer": video()}])
        expect(page.locator("#count")).to_have_text("3")
        expect(page.locator("#player")).to_be_visible()


def test_frames_of_a_video_are_looked_at_and_can_be_kept(open_page):
    page = open_page()
    page.set_input_files("#video", files=[{"name": "a.webm", "mimeType": "video/webm", "buffer": video()}])
    count(page, 3)
    expect(page.locator("#rate")).to_contain_text("frames/s")
    page.get_by_role("button", name="Keep this frame").click()
    expect(page.locator("#strip button")).to_have_count(1)
    page.locator("#stop").click()
    expect(page.locator("#player")).to_be_hidden()
    count(page, 3)
    expect(page.get_by_role("button", name="Add a box")).to_be_enabled()  # an image like any other


def test_a_video_goes_on_after_a_long_pause(open_page, running, monkeypatch):
    monkeypatch.setattr(streams, "IDLE_SECONDS", 0.5)
    page = open_page()
    page.set_input_files("#video", files=[{"name": "a.webm", "mimeType": "video/webm", "buffer": video()}])
    count(page, 3)
    with client(running) as ours:
        for open_streams in (0, 1):
            until = time.monotonic() + 20
            while f"nextdetr_streams {open_streams}.0" not in ours.get("/metrics").text:  # at its end no frame is sent
                assert time.monotonic() < until
            if not open_streams:
                page.locator("#play").click()
    expect(page.locator("#error")).to_be_hidden()
    expect(page.locator("#player")).to_be_visible()


def test_the_camera_is_looked_at_on_a_phone_in_chinese(open_page, tmp_path):
    page = open_page(390, 844, locale="zh-CN", has_touch=True, is_mobile=True, device_scale_factor=2)
    expect(page.get_by_role("heading", name="把图片拖到这里")).to_be_visible()
    page.screenshot(path=tmp_path / "empty.png")
    page.get_by_role("button", name="使用摄像头").tap()
    count(page, 3)
    page.get_by_role("button", name="保留这一帧").tap()
    page.locator("#stop").tap()
    box = page.locator("#canvas").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.28, box["y"] + box["height"] * 0.4)
    expect(page.locator("#objects .chosen")).to_have_count(1)
    page.get_by_role("button", name="删除").tap()
    count(page, 2)
    page.get_by_role("button", name="撤销").tap()
    count(page, 3)
    page.screenshot(path=tmp_path / "found.png", full_page=True)
    page.get_by_role("button", name="English").tap()
    expect(page.get_by_role("button", name="Add a box")).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_cut_off_at_the_width_of_a_phone_or_a_desk(open_page, width, tmp_path):
    page = open_page(width, 844)
    drop(page, *((f"picture number {number}.jpg", scene()) for number in range(12)))
    count(page, 3)
    page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert cut_off(page, width) == []
    small = page.evaluate(
        "[...document.querySelectorAll('main button')].filter(b => b.offsetWidth && b.offsetHeight < 30).length"
    )
    assert small == 0
    assert unnamed(page) == []
