from __future__ import annotations

import threading
from io import BytesIO

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

from nextdetr.inference.predictor import select_classes
from nextdetr.preprocess import Reading
from nextdetr.serve.decode import decode
from nextdetr.serve.run import start
from tests.export.handmade import handmade

CLASSES = ["cat", "dog", "bird"]
#: What ``FakeEngine`` finds in every picture: shares of its sides, confidence, class.
FOUND = [((0.1, 0.15, 0.45, 0.6), 0.92, 0), ((0.55, 0.3, 0.9, 0.85), 0.71, 1), ((0.05, 0.7, 0.3, 0.95), 0.34, 2)]


class FakeEngine:
    """Finds the same in every picture, as fast as it is told to; notes the batches."""

    def __init__(self, max_pixels=1_000_000):
        self.batches, self.gate, self.broken = [], threading.Event(), None
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.reading = Reading(max_pixels=max_pixels)

    def prepare(self, job):
        image = decode(job.content, job.name, self.reading)
        job.size = image.size
        return np.asarray(image)[0, 0].tolist()

    def compute(self, inputs):
        self.batches.append(list(inputs))
        self.entered.release()
        assert self.gate.wait(30)
        if self.broken is not None and any(self.broken(value) for value in inputs):
            raise RuntimeError("the runtime broke down")
        return inputs

    def finish(self, job, output):
        width, height = job.size
        scale = (width, height, width, height)
        detections = [
            {"box": [a * b for a, b in zip(box, scale, strict=True)], "confidence": score, "class_id": label,
             "class_name": CLASSES[label]}
            for box, score, label in FOUND
            if score >= (0.3 if job.settings["confidence"] == "auto" else job.settings["confidence"])
            and (job.settings["classes"] is None or label in job.settings["classes"])
        ]  # fmt: skip
        detections = detections[: job.settings["max_detections"]]
        return {"name": job.name, "width": width, "height": height, "pixel": output, "detections": detections}, None

    def class_indices(self, names):
        return None if names is None else select_classes(CLASSES, names)

    def check_confidence(self, confidence):
        assert confidence != "calibrated"

    def warm_up(self):
        pass


INFO = {"model": "fake", "classes": CLASSES, "image_size": 64, "runtime": "none", "device": "cpu", "batches": True,
        "trained": True, "confidence": "auto", "thresholds": None, "calibrated": None,
        "checks_unlikeness": False, "max_detections": 300, "merge_iou": None}  # fmt: skip


def fake_opens(engine):
    return lambda source, config: (engine, INFO)


def encoded(colour=(90, 120, 90), size=(64, 48), form="PNG", **settings):
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, form, **settings)
    return file.getvalue()


def scene(size=(640, 480)):
    """A picture of the objects that ``FakeEngine`` finds."""
    width, height = size
    across = np.linspace(200, 235, width)[None, :, None] * np.linspace(1.05, 0.85, height)[:, None, None]
    image = Image.fromarray((across * np.array([0.86, 0.95, 1.0])).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for (x1, y1, x2, y2), _, label in FOUND:
        corners = [x1 * width + 6, y1 * height + 6, x2 * width - 6, y2 * height - 6]
        (draw.ellipse, draw.rectangle, draw.ellipse)[label](corners, fill=("#b98b5e", "#7d8ea3", "#c56b5b")[label])
    file = BytesIO()
    image.save(file, "JPEG", quality=92)
    return file.getvalue()


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "toy" / "model.onnx"
    path.parent.mkdir()
    handmade(path)
    return path


@pytest.fixture(scope="session")
def server(model):
    """A server of an exported file, and a client for it."""
    with start(model, max_pixels=1_000_000, max_bytes=2_000_000, max_images=4) as running, client(running) as ours:
        ours.app = running.app
        yield ours


@pytest.fixture
def engine():
    return FakeEngine()


def client(running, **settings):
    return httpx.Client(base_url=running.url, timeout=30, trust_env=False, **settings)


# The page in a browser.


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corrected")
    with start("fake", opens=fake_opens(FakeEngine(10_000_000)), corrections=folder) as running:
        running.folder = folder
        yield running


@pytest.fixture
def open_page(browser, running):
    """Open the page; at the end of the test nothing has gone elsewhere, and nothing went wrong in the browser."""
    from playwright.sync_api import expect

    contexts, wrong = [], []

    def open_page(width=1400, height=900, *, server=None, keys=(), **settings):
        settings = {"locale": "en-GB", **settings}
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        url = (server or running).url
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if "Content Security" in line.text else None)
        page.goto(url)
        for key in keys:
            expect(page.locator("#ask")).to_be_visible()
            page.locator("#secret").fill(key)
            page.keyboard.press("Enter")
            expect(page.locator("#secret")).not_to_have_value(key)
        page.locator("#classes li").first.wait_for(state="attached")
        return page

    yield open_page
    for context in contexts:
        elsewhere = [url for page in context.pages for url in page.requested
                     if not url.startswith(("http://127.0.0.1", "blob:", "data:"))]  # fmt: skip
        assert not elsewhere
        context.close()
    assert not wrong
