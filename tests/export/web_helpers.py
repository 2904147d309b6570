"""Folders of ``export --format web`` made in milliseconds, and a server for them."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
from PIL import Image
from playwright.sync_api import expect

from nextdetr import Detector
from nextdetr.confidence import thresholds_metadata
from nextdetr.export.web.folder import write_folder
from nextdetr.export.web.runtime import runtime_files
from nextdetr.export.web.serve_folder import Handler
from nextdetr.inference.contract import Contract
from nextdetr.preprocess import load_image
from tests.browser import drop
from tests.export.handmade import CLASSES, FOUND, SIDE, handmade


def web_folder(folder, *, single=False, thresholds=(), logits=None):
    """The page around a graph made by hand: one convolution, twelve detections in every picture."""
    details = {"source": "toy.safetensors", "licence": "Apache-2.0", "weights_licence": "none", "trained": "yes",
               **thresholds_metadata(thresholds)}  # fmt: skip
    contract = Contract(
        CLASSES, SIDE, FOUND, input_type="uint8", layout="nhwc", raw=True, portable=True, details=details,
        max_detections=FOUND * len(CLASSES),
    )  # fmt: skip
    handmade(folder / "model.onnx", contract, logits=logits)
    return write_folder(folder / "model.onnx", contract, runtime_files(), "toy", single=single)


class Plain(SimpleHTTPRequestHandler):
    """As most servers do, it sends no headers of its own."""

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def served(folder, handler=Handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def picture(size=(160, 120), form="PNG", mode="RGB", seed=0, **settings):
    generator = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    coarse = generator.integers(0, 256, (5, 6, channels), dtype=np.uint8).squeeze()
    image = Image.fromarray(coarse, mode).resize(size, Image.Resampling.BICUBIC)
    file = BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def found_at(page, confidence="0.05"):
    """What is in the download, all of it."""
    page.locator("#threshold").fill(confidence)
    with page.expect_download() as waiting:
        page.locator("[data-download=json]").click()
    return json.loads(waiting.value.path().read_text())


def assert_as_python(page, model, files, tmp_path):
    """Boxes and scores of pictures, content by name, are those of ``nextdetr predict``, to a tenth of what is promised."""
    drop(page, *files.items())
    expect(page.locator("#strip .mark").last).to_have_text(re.compile(r"\d+"))
    images = {image["name"]: image for image in found_at(page)["images"]}
    assert images.keys() == files.keys()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    detector = Detector(model, runtime="onnxruntime")
    for name, wanted in zip(files, detector.predict([tmp_path / name for name in files], confidence=0.05), strict=True):
        got, (width, height) = images[name], load_image(tmp_path / name).size
        assert (got["width"], got["height"]) == (width, height)
        assert [row["class_id"] for row in got["detections"]] == wanted.class_id.tolist(), name
        assert len(wanted) > 5
        boxes, scores = ([row[key] for row in got["detections"]] for key in ("box", "confidence"))
        np.testing.assert_allclose(boxes, wanted.xyxy, rtol=0, atol=1e-4 * max(width, height), err_msg=name)
        np.testing.assert_allclose(scores, wanted.confidence, rtol=0, atol=1e-4, err_msg=name)
