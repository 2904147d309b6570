#!/usr/bin/env bash
# Most trackers return the detections of a frame in another order than they were given, and three leave some out.
#
# Expected (written before testing): update returns the same detections in the same order, with a tracker_id each, and -1 for
# those without a track. So it can be used beside other lists of the same frame, such as masks, crops or embeddings.
#
# Observed (trackers 2.6.1, supervision 0.31.2, 2026-12-01): only SORTTracker keeps the order. ByteTrackTracker and
# OCSORTTracker return detections that have a track first. BoTSORTTracker, CBIoUTracker and McByteTracker do that too, and
# leave out boxes with a confidence below 0.1, without a warning. The order also differs between frames: the one box of five
# that is confident enough for a track is last in the first frame, except with OCSORTTracker, and first from then on.
#
# Who is affected: anyone who zips the result with what was computed for the same boxes earlier, or writes
# detections.tracker_id back to their own list: ids end up on other objects. What is in detections.data moves with the
# boxes, so an index kept there restores the order.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 opencv-python==5.0.0.93 scipy==1.17.1 supervision==0.31.2 trackers==2.6.1

"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import supervision as sv
import trackers

BOXES = [[300, 300, 340, 340], [10, 10, 50, 50], [100, 100, 150, 150], [500, 20, 520, 60], [200, 400, 260, 470]]
SCORES = [0.2, 0.9, 0.55, 0.3, 0.05]
EXPECTED = {
    "SORTTracker": [[0, 1, 2, 3, 4]] * 3,
    "ByteTrackTracker": [[0, 2, 3, 4, 1], [1, 0, 2, 3, 4], [1, 0, 2, 3, 4]],
    "OCSORTTracker": [[1, 0, 2, 3, 4]] * 3,
    "BoTSORTTracker": [[0, 2, 3, 1], [1, 0, 2, 3], [1, 0, 2, 3]],
    "CBIoUTracker": [[0, 2, 3, 1], [1, 0, 2, 3], [1, 0, 2, 3]],
    "McByteTracker": [[0, 2, 3, 1], [1, 0, 2, 3], [1, 0, 2, 3]],
}


def orders(name):
    """Positions in the input of what a tracker returns, in three frames in which nothing moves."""
    tracker = getattr(trackers, name)()
    seen = []
    for _ in range(3):
        found = sv.Detections(
            xyxy=np.array(BOXES, dtype=np.float32),
            confidence=np.array(SCORES, dtype=np.float32),
            class_id=np.zeros(len(BOXES), dtype=int),
            data={"position": np.arange(len(BOXES))},
        )
        seen.append(tracker.update(found).data["position"].tolist())
    return seen


found = {name: orders(name) for name in EXPECTED}
for name, seen in found.items():
    print(f"{name:17} {seen}")
if found != EXPECTED:
    sys.exit("The behaviour has changed.")
PY
