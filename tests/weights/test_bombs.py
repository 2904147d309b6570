"""Files of a few bytes that claim far more: read in a separate process, whose memory and time are measured."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import textwrap

import pytest

from tests.weights.torch_files import memo_bomb, tensor, text, torch_zip

FOUR = {"0": bytes(16)}


def twins(levels):
    """Return instructions for modules that hold the next module twice each."""
    module = b"ca\nM\n)\x81}" + text("_modules") + b"}sb"
    for _ in range(levels):
        module = (
            module
            + b"q\x00"
            + b"0ca\nM\n)\x81}"
            + text("_modules")
            + b"}("
            + text("a")
            + b"h\x00"
            + text("b")
            + b"h\x00usb"
        )
    return module


PRIME = (1 << 61) - 1  # all its multiples have the hash 0
COLLIDING = [PRIME * factor for factor in range(1, 60_000)]


def long(number):
    return b"\x8a\x0a" + number.to_bytes(10, "little")


# What each would cost if it were believed is in the name; the process that reads it may take 400 MB.
BOMBS = {
    "lists of lists: 2^250": (text("x") + memo_bomb(250), None),
    "key of nested tuples: 2^200 hashes": (text("x") + b"}K\x01" + b"2\x86" * 200 + b"K\x01s", "a key is a nested tuple"),
    "tuples within tuples: the stack": (text("x") + b")" + b"\x85" * 1_000_000, None),
    "key of tuples within tuples": (text("x") + b"})" + b"\x85" * 1_000_000 + b"K\x01s", "a key is a nested tuple"),
    "stubs within stubs": (text("x") + (b"ca\nM\n)\x81}" + text("a")) * 100_000 + b"K\x01" + b"sb" * 100_000, None),
    "lists: 60 MB of them": (text("x") + b"](" + b"]" * 60_000_000 + b"e", "more objects"),
    "dup of a text, encoded each time": (
        text("x") + b"](" + text("y" * 100_000) + b"q\x010" + b"c_codecs\nencode\nh\x01"
        b"X\x06\0\0\0latin1\x86R" * 20_000 + b"e",
        "more objects",
    ),
    "list of a list each time": (
        text("x") + b"](" + b"K\x01" * 9_999 + b"eq\x010](" + b"cbuiltins\nlist\nh\x01\x85R" * 20_000 + b"e",
        "more objects",
    ),
    "memo of 16 GB": (text("x") + b"K\x01r\xff\xff\xff\x7f", None),
    "string of 1 GB": (text("x") + b"X\x00\x00\x00\x40abc", "damaged"),
    "bytes of 2^62": (text("x") + b"\x8e" + struct.pack("<Q", 1 << 62) + b"abc", "damaged"),
    "number of 2 GB": (text("x") + b"\x8b\xff\xff\xff\x7fabc", "damaged"),
    "number of a million digits": (text("x") + b"L" + b"9" * 1_000_000 + b"L\n", "damaged"),
    "frame of 2^62": (text("x") + b"\x95" + struct.pack("<Q", 1 << 62) + b"K\x01", None),
    "list in itself": (text("x") + b"]q\x01h\x01a", None),
    "modules in modules: 2^150": (text("model") + twins(150), "more modules in each other"),
    "keys that collide: 60,000 squared": (
        text("x") + b"}(" + b"".join(long(number) + b"K\x01" for number in COLLIDING) + b"u",
        "far too many digits",
    ),
    "keys that nearly collide": (
        text("x") + b"}(" + b"".join(long((k << 40) + 1) + b"K\x01" for k in range(60_000)) + b"u",
        None,
    ),
    "a set of what collides": (
        text("x") + b"\x8f(" + b"".join(long(number) for number in COLLIDING) + b"\x90",
        "far too many digits",
    ),
    "tuples of what collides": (
        text("x") + b"}(" + b"".join(long(number) + b"\x85K\x01" for number in COLLIDING) + b"u",
        "far too many digits",
    ),
    "places in the memo that collide": (text("x") + b"K\x01" + b"".join(b"p%d\n" % number for number in COLLIDING), None),
    "module in itself": (
        text("model") + b"ca\nM\n)\x81q\x01}" + text("_modules") + b"}" + text("a") + b"h\x01ssb",
        "more modules",
    ),
}


@pytest.fixture(scope="module")
def exploded(tmp_path_factory):
    """Read all bombs in one process of its own: for each what was said, megabytes of new memory at the peak, seconds."""
    folder = tmp_path_factory.mktemp("bombs")
    for index, (instructions, _) in enumerate(BOMBS.values()):
        start = b"\x80\x04}(" + text("model") + b"}" + text("w") + tensor() + b"s"
        torch_zip(folder / f"{index}.pt", start + instructions + b"u.", FOUR)
    script = """
        import json, pathlib, sys, time
        from nextdetr.errors import WeightsError
        from nextdetr.weights.reader import read_tensors

        def resident(field):  # getrusage would count what the parent process had before the fork
            lines = pathlib.Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

        results = []
        for number in range(int(sys.argv[2])):
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # restarts the peak
            before, start = resident("VmRSS"), time.process_time()
            try:
                file = read_tensors(f"{sys.argv[1]}/{number}.pt")
                str(file.extra)
                told = str(list(file.tensors))
            except WeightsError as error:
                told = str(error)
            results.append([told, resident("VmHWM") - before, time.process_time() - start])
        print(json.dumps(results))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder), str(len(BOMBS))],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    return dict(zip(BOMBS, json.loads(done.stdout), strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak memory from /proc")
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(exploded, bomb):
    cause = BOMBS[bomb][1]
    told, megabytes, seconds = exploded[bomb]
    assert (cause in told) if cause else (told == "['w']"), told
    assert megabytes < 400
    assert seconds < 30
