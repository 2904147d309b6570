#!/usr/bin/env bash
# The same weights with the same metadata, saved twice, give two different files.
#
# Expected (written before testing): safetensors is a simple format with a JSON header, so the same tensors with the same
# metadata always give the same bytes, and a checksum of the file shows whether the weights changed.
#
# Observed (safetensors 0.8.0, 2026-11-28): the order of the keys under "__metadata__" changes from one process to the next.
# The tensors keep a fixed order and equal bytes. Ten processes that saved one dictionary with eight metadata keys gave ten
# checksums. With one key, or with none, there was one.
#
# Who is affected: anyone who names, caches, signs or compares checkpoints by their checksum. Builds meant to be
# reproducible are not, and deduplicating storage keeps every copy. Compare the tensors, or put all metadata under one key (as JSON
# with sorted keys).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 safetensors==0.8.0

cat > "$work/save.py" <<'PY'
import hashlib
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

keys = ("format", "model", "classes", "size", "mean", "std", "epoch", "version")[: int(sys.argv[1])]
path = Path(sys.argv[2])
tensors = {"head.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "head.bias": np.ones(2, np.float32)}
save_file(tensors, path, metadata={key: f"the {key}" for key in keys} or None)
assert all(np.array_equal(load_file(path)[name], tensor) for name, tensor in tensors.items())
print(hashlib.sha256(path.read_bytes()).hexdigest())
PY

count() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do "$work/venv/bin/python" "$work/save.py" "$1" "$work/weights.safetensors"; done |
        sort -u | wc -l
}
none=$(count 0) one=$(count 1) eight=$(count 8)
echo "different checksums in 10 processes: $((none)) without metadata, $((one)) with 1 key, $((eight)) with 8 keys"
[ $((none)) = 1 ] && [ $((one)) = 1 ] && [ $((eight)) -gt 1 ] || { echo "The behaviour has changed."; exit 1; }
