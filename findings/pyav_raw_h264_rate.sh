#!/usr/bin/env bash
# The frame rate of a raw .h264 file reads as 25, whatever it is.
#
# Guess, written down first: Stream.average_rate of PyAV is the rate of the video. The encoder writes 10, 30 or 60
# frames a second into the stream, so this is what average_rate gives.
#
# What happens (av 18.1.0, 2026-11-28): a raw H.264 stream has no container that holds times. average_rate is then
# the 25 that FFmpeg's raw reader starts with: not None, not a warning. The frames have no time either. The rate is
# in the file, and guessed_rate and codec_context.framerate give it. Seen, average_rate against guessed_rate:
# 25 and 10, 25 and 25, 25 and 30, 25 and 60. The same frames in an .mp4 file give 10, 25, 30 and 60 in both.
#
# Who is hurt: whoever runs a detector on recordings of a camera, many of which are raw .h264. The video that is
# written plays 2.4 times too slowly (60 frames a second), speeds and times of tracked objects are wrong by the same
# factor, and a tracker keeps lost objects for the wrong time.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 av==18.1.0
cd "$work"

"$work/venv/bin/python" - <<'PY'
import sys

import av
import numpy as np


def rates(name, fps):
    """Write a second of video and give both rates, and whether any frame has a time."""
    with av.open(name, "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(fps):
            image = np.full((48, 64, 3), index * 4 % 256, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    with av.open(name) as file:
        frames = list(file.decode(video=0))
        assert len(frames) == fps
        stream = file.streams.video[0]
        timed = any(frame.time is not None for frame in frames)
        return float(stream.average_rate), float(stream.guessed_rate), timed


right = True
for fps in (10, 25, 30, 60):
    raw, mp4 = rates("raw.h264", fps), rates("boxed.mp4", fps)
    print(f"{fps} frames a second (average_rate, guessed_rate, frames have times): .h264 {raw}, .mp4 {mp4}")
    right = right and raw == (25, fps, False) and mp4 == (fps, fps, True)
if not right:
    sys.exit("The behaviour has changed.")
PY
