#!/usr/bin/env bash
# The frame rate of any raw .h264 file reads as 25.
#
# Expected (written before testing): Stream.average_rate of PyAV is the frame rate of the video. The encoder writes 10, 30 or
# 60 frames per second into the stream, so average_rate returns that.
#
# Observed (av 18.1.0, 2026-11-28): a raw H.264 stream has no container with timestamps. average_rate is then the default of
# FFmpeg's raw reader, 25: not None, and without a warning. The frames have no timestamps either. The rate is in the file,
# and guessed_rate and codec_context.framerate return it. average_rate and guessed_rate were 25 and 10, 25 and 25, 25 and
# 30, 25 and 60. The same frames in an .mp4 file give 10, 25, 30 and 60 in both.
#
# Who is affected: anyone who runs a detector on camera recordings, many of which are raw .h264. The output video plays 2.4
# times too slowly (at 60 frames per second), speeds and times of tracked objects are wrong by the same factor, and a tracker
# keeps lost objects for the wrong time.
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
