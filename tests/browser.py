"""Debian's Chromium, as ``make browser`` installs it; without it tests fail and say so."""

from __future__ import annotations

import contextlib
import shutil
from io import BytesIO

import av
import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright

ARGUMENTS = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-sandbox", "--disable-gpu"]

expect.set_options(timeout=60_000)  # on a busy machine a browser takes its time


@contextlib.contextmanager
def chromium():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.fail("pages are tested in Chromium, which is not installed: make browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


def drop(page, *files):
    """Drop files, (name, content) each, as from another window."""
    page.evaluate(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, bytes] of files) transfer.items.add(new File([new Uint8Array(bytes)], name));
            for (const kind of ['dragover', 'drop']) {
                const event = new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true});
                document.getElementById('stage').dispatchEvent(event);
            }
        }""",
        [[name, list(content)] for name, content in files],
    )


def cut_off(page, width):
    """Ids of clickable elements outside the width of the page."""
    return page.evaluate(
        """width => [...document.querySelectorAll('button, select, input:not([type=file])')].filter(element => {
            const box = element.getBoundingClientRect();
            return box.width && !element.closest('#strip') && (box.left < 0 || box.right > width);
        }).map(element => element.id)""",
        width,
    )


def unnamed(page):
    """Elements without a text or an accessible name."""
    return page.evaluate(
        """[...document.querySelectorAll('button, select, canvas, input:not([hidden])')].filter(element =>
            element.offsetWidth && !element.textContent.trim() && !element.ariaLabel && !element.labels?.length
        ).map(element => element.outerHTML)"""
    )


def video():
    """Ten grey frames of 160 by 120 pixels, ten a second, as a WebM file."""
    file = BytesIO()
    with av.open(file, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 20 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()
