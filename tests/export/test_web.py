"""What ``export --format web`` writes, in Debian's Chromium: without it (``make browser``) these tests fail."""

from __future__ import annotations

import base64
import json
import shutil
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms
from playwright.sync_api import expect

from nextdetr.export.web.runtime import WASM
from tests.browser import cut_off, drop, unnamed, video
from tests.export.handmade import CLASSES
from tests.export.web_helpers import Plain, assert_as_python, found_at, picture, served, web_folder

#: Notes what goes to the detector, and how much of it waits for an answer.
COUNT = """
Object.assign(window, { posted: 0, waiting: 0, most: 0 });
window.Worker = class extends Worker {
  constructor(...given) {
    super(...given);
    this.addEventListener('message', () => { window.waiting -= 1; });
  }
  postMessage(...given) {
    window.posted += 1;
    window.waiting += 1;
    window.most = Math.max(window.most, window.waiting);
    return super.postMessage(...given);
  }
};
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    web_folder(folder, single=True)
    return folder


@pytest.fixture(scope="module")
def address(folder):
    with served(folder) as address:
        yield address


@pytest.fixture
def open_page(browser, address):
    """Open the page; at the end of the test nothing has come from elsewhere, and nothing went wrong in the browser."""
    contexts, wrong = [], []

    def open_page(width=1400, height=900, *, at=None, ready=True, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, **{"locale": "en-GB", **settings})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.add_init_script(COUNT)
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if "Content Security" in line.text else None)
        page.goto(at or address)
        if ready:
            expect(page.locator("#runtime")).to_contain_text("thread" if settings.get("locale") != "zh-CN" else "线程")
        return page

    yield open_page
    for context in contexts:
        elsewhere = [url for page in context.pages for url in page.requested
                     if not url.startswith(("http://127.0.0.1", "blob:", "data:", "file://"))]  # fmt: skip
        assert not elsewhere
        context.close()
    assert not wrong


def counted(page):
    expect(page.locator("#time")).to_contain_text("Model")
    return int(page.locator("#count").text_content())


@pytest.mark.parametrize("threads", [1, 2])
def test_boxes_are_those_of_python_with_any_number_of_threads(open_page, address, folder, tmp_path, threads):
    page = open_page(at=f"{address}?threads={threads}")
    expect(page.locator("#runtime")).to_have_text(f"onnxruntime-web 1.30.0, 64 px, {threads} thread{'s' * (threads > 1)}.")
    assert_as_python(page, folder / "model.onnx", {"photo.jpg": picture((641, 427), "JPEG", quality=90)}, tmp_path)


def test_the_single_file_runs_from_the_disk_without_the_folder(open_page, folder, tmp_path):
    alone = tmp_path / "alone.html"
    shutil.copy(folder / "toy.html", alone)
    page = open_page(at=alone.as_uri())
    expect(page.locator("#runtime")).to_contain_text("1 thread. A single file runs on one thread.")
    assert_as_python(page, folder / "model.onnx", {"photo.jpg": picture((300, 400), "JPEG", quality=90)}, tmp_path)
    assert {url.split(":")[0] for url in page.requested} == {"file", "blob"}
    assert [url for url in page.requested if url.startswith("file")] == [alone.as_uri()]


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def swapped_colours():
    """A colour profile that swaps red and blue, so that applying it would be visible."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")


FILES = {
    "grey.png": picture(mode="L"),
    "turned.jpg": picture((90, 60), "JPEG", exif=turned()),
    "transparent.png": picture((90, 70), mode="RGBA"),
    "subsampled.jpg": picture((333, 222), "JPEG", quality=75, subsampling="4:2:0"),
    "profile.png": picture((60, 60), icc_profile=swapped_colours()),
    "wide.webp": picture((900, 40), "WEBP", lossless=True),
}


def test_files_are_read_as_python_reads_them(open_page, folder, tmp_path):
    assert_as_python(open_page(), folder / "model.onnx", FILES, tmp_path)


@pytest.mark.parametrize("side", [64, 320])
def test_pictures_are_resized_to_the_last_digit(open_page, address, side):
    page = open_page(at=f"{address}page/resize.js", ready=False)
    sizes = [(64, 64), (640, 480), (37, 411), (1, 1), (3, 2000), (65, 63), (2400, 1300), (900, 2000), (700, 1300)]
    for width, height in sizes:
        noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        file = BytesIO()
        Image.fromarray(noise).save(file, "PNG", compress_level=1)
        text = page.evaluate(
            """async ([address, png, side]) => {
                const { resized } = await import(`${address}page/resize.js`);
                const bytes = Uint8Array.from(atob(png), (letter) => letter.charCodeAt(0));
                const found = resized(await createImageBitmap(new Blob([bytes])), side);
                let text = '';
                for (let at = 0; at < found.length; at += 9000) text += String.fromCharCode(...found.slice(at, at + 9000));
                return btoa(text);
            }""",
            [address, base64.b64encode(file.getvalue()).decode(), side],
        )
        got = np.frombuffer(base64.b64decode(text), np.uint8).reshape(side, side, 3)
        expected = np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(got, expected, err_msg=f"{width} x {height}")


def test_sliders_and_classes_run_nothing_again(open_page):
    page = open_page()
    drop(page, ("a.png", picture(seed=1)), ("b.png", picture(seed=2)))
    page.locator("#threshold").fill("0.05")
    expect(page.locator("#strip .mark").nth(1)).to_have_text("12")
    posted, every = page.evaluate("window.posted"), counted(page)
    page.locator("#threshold").fill("0.5")
    assert 0 < counted(page) < every
    page.locator("#threshold").fill("0.05")
    page.get_by_label(CLASSES[0]).uncheck()
    assert 0 < counted(page) < every
    assert page.evaluate("window.posted") == posted == 3  # the model, and two pictures


def test_the_detectors_own_thresholds_are_the_default(open_page, tmp_path):
    web_folder(tmp_path, thresholds=(0.99, 0.01, 0.99))
    with served(tmp_path) as address:
        page = open_page(at=address)
        expect(page.locator("#level")).to_have_text("by class")
        drop(page, ("a.png", picture()))
        assert counted(page) == 4
        assert {row.split("0.")[0] for row in page.locator("#objects li").all_text_contents()} == {CLASSES[1]}


def test_downloads_are_what_they_say(open_page):
    page = open_page()
    drop(page, ("a.png", picture()), ("b.jpg", picture((50, 80), "JPEG")))
    page.locator("#threshold").fill("0.05")
    expect(page.locator("#strip .mark").nth(1)).to_have_text("12")
    with page.expect_download() as waiting:
        page.locator("[data-download=coco]").click()
    coco = json.loads(waiting.value.path().read_text())
    assert [(image["file_name"], image["width"], image["height"]) for image in coco["images"]] == [
        ("a.png", 160, 120), ("b.jpg", 50, 80),
    ]  # fmt: skip
    assert (len(coco["annotations"]), [row["name"] for row in coco["categories"]]) == (24, CLASSES)
    assert found_at(page)["model"] == "toy"
    expect(page.locator("#saving")).to_be_hidden()  # there is no server to save anything


def test_frames_of_a_video_never_wait_in_a_queue(open_page):
    page = open_page()
    page.set_input_files("#video", files=[{"name": "a.webm", "mimeType": "video/webm", "buffer": video()}])
    page.locator("#threshold").fill("0.05")
    expect(page.locator("#count")).to_have_text("12")
    expect(page.locator("#rate")).to_contain_text("frames/s")
    while page.evaluate("window.posted") <= 4:
        page.wait_for_timeout(50)
    assert page.evaluate("window.most") == 1
    page.get_by_role("button", name="Keep this frame").click()
    expect(page.locator("#strip button")).to_have_count(1)
    page.locator("#stop").click()
    expect(page.locator("#player")).to_be_hidden()
    expect(page.locator("#count")).to_have_text("12")


def test_the_camera_on_a_phone_in_chinese(open_page, tmp_path):
    page = open_page(390, 844, locale="zh-CN", has_touch=True, is_mobile=True, device_scale_factor=2)
    expect(page.locator("#promise")).to_have_text("图片只在此浏览器中处理，不会发送到任何地方。")  # noqa: RUF001
    expect(page.locator("#loading")).to_contain_text("个线程")
    page.screenshot(path=tmp_path / "empty.png")
    page.get_by_role("button", name="使用摄像头").tap()
    page.locator("#threshold").fill("0.05")
    expect(page.locator("#count")).to_have_text("12")
    page.locator("#stop").tap()
    page.get_by_role("button", name="English").tap()
    expect(page.locator("#loading")).to_contain_text("thread")


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_cut_off_and_all_of_it_is_named(open_page, width, tmp_path):
    page = open_page(width, 844)
    page.screenshot(path=tmp_path / f"{width}-empty.png", full_page=True)
    drop(page, *((f"picture number {number}.png", picture(seed=number)) for number in range(6)))
    page.locator("#threshold").fill("0.3")
    assert counted(page)
    page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert cut_off(page, width) == unnamed(page) == []


def test_one_thread_says_why(open_page, folder):
    with served(folder, Plain) as address:
        page = open_page(at=address)
        expect(page.locator("#runtime")).to_contain_text("1 thread. Several threads need the headers COOP and COEP")
        drop(page, ("a.png", picture()))
        assert counted(page) >= 0


def test_what_is_wrong_is_said_in_a_sentence(open_page):
    page = open_page()
    drop(page, ("broken.jpg", picture(form="JPEG")[:300]), ("fine.png", picture()))
    expect(page.get_by_role("alert")).to_contain_text("broken.jpg cannot be read: it is damaged")
    page.locator("#strip button").nth(1).click()
    expect(page.get_by_role("alert")).to_be_hidden()
    drop(page, ("notes.txt", b"no picture"))
    expect(page.get_by_role("alert")).to_contain_text("notes.txt is neither a picture nor a video")


#: Decoding for the screen takes a second, longer than detection in a worker, as on a busy machine; names in `unknown` fail.
SLOW_DECODING = """unknown => {
    const decode = window.createImageBitmap.bind(window);
    window.createImageBitmap = async (file, ...rest) => {
        await new Promise((done) => { setTimeout(done, 1000); });
        if (unknown.includes(file.name)) throw new Error('no decoder');
        return decode(file, ...rest);
    };
}"""


def test_a_picture_that_is_decoded_late_is_no_error(open_page):
    page = open_page()
    page.evaluate(SLOW_DECODING, [])
    drop(page, ("fine.png", picture()))
    assert counted(page) >= 0
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_picture_that_the_browser_cannot_show_says_so_only_while_it_is_open(open_page):
    page = open_page()
    page.evaluate(SLOW_DECODING, ["odd.png"])
    drop(page, ("odd.png", picture()), ("fine.png", picture(seed=1)))
    expect(page.get_by_role("alert")).to_contain_text("This browser cannot show the picture; the boxes are still correct")
    page.locator("#strip button").nth(1).click()
    page.locator("#strip button").nth(0).click()
    page.locator("#strip button").nth(1).click()
    page.wait_for_timeout(1500)
    expect(page.get_by_role("alert")).to_be_hidden()
    page.locator("#strip button").nth(0).click()
    expect(page.get_by_role("alert")).to_contain_text("cannot show the picture")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), "model.onnx cannot be loaded (404): serve the whole folder"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"another"), "model.onnx cannot be loaded (it has 7 bytes,"),
        (lambda folder: (folder / "runtime" / WASM).write_bytes(bytes((folder / "runtime" / WASM).stat().st_size)),
         "onnxruntime-web fails in this browser"),
        (lambda folder: (folder / "page" / "worker.js").unlink(), "The detector has stopped"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole_says_so(open_page, folder, tmp_path, spoil, sentence):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy)
    with served(copy) as address:
        page = open_page(at=address, ready=False)
        expect(page.get_by_role("alert")).to_contain_text(sentence)


def test_a_model_that_computes_no_numbers_says_so(open_page, tmp_path):
    web_folder(tmp_path, logits=np.full((1, 4, 3), np.nan, np.float32))
    with served(tmp_path) as address:
        page = open_page(at=address)
        drop(page, ("a.png", picture()))
        expect(page.get_by_role("alert")).to_contain_text("is not a number (NaN)")


def test_the_folders_page_from_the_disk_says_how_to_open_it(open_page, folder):
    page = open_page(at=(folder / "index.html").as_uri(), ready=False)
    expect(page.get_by_role("alert")).to_contain_text("python serve.py")
