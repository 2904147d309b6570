#!/usr/bin/env bash
# PP-DocLayoutV2 has every tensor of an RT-DETR, under the same names.
#
# Guess, written down first: a folder's weights tell by their names what they are; if all names of an RT-DETR are there, it
# is one, and what is left over is a buffer or two that need not be loaded.
#
# What happens (transformers 5.24.0, 2026-11-29): PP-DocLayoutV2 is an RT-DETR with a reader of the order of elements behind
# it. Without the first part of its names, `model.`, its state dict holds every name of RTDetrForObjectDetection of the same
# sizes, and what is left over is `reading_order.…` alone, hundreds of tensors.
#
# Who is hurt: whoever recognises checkpoints by names, or loads them with strict=False: it opens as an RT-DETR, with classes
# of document elements, and half of the network is lost without a message. `model_type` in config.json is what tells.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 transformers==5.24.0

cat > "$work/look.py" <<'PY'
import torch
from transformers import CONFIG_MAPPING, AutoModelForObjectDetection, RTDetrForObjectDetection

config = CONFIG_MAPPING["pp_doclayout_v2"]()
with torch.device("meta"):
    layout = AutoModelForObjectDetection.from_config(config).state_dict()
    plain = RTDetrForObjectDetection(CONFIG_MAPPING["rt_detr"](backbone_config=config.backbone_config)).state_dict()
names = {name.removeprefix("model.") for name in layout}
wanted = {name.removeprefix("model.") for name in plain}
rest = {name.split(".")[0] for name in names - wanted}
print(f"names of RT-DETR that are missing: {len(wanted - names)}; left over: {', '.join(sorted(rest))}")
PY
found=$(HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/look.py" 2>/dev/null)
echo "$found"
[ "$found" = "names of RT-DETR that are missing: 0; left over: reading_order" ] || { echo "The behaviour has changed."; exit 1; }
