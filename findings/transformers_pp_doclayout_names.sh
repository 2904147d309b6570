#!/usr/bin/env bash
# PP-DocLayoutV2 has every tensor of an RT-DETR, under the same names.
#
# Expected (written before testing): the tensor names in a folder show what it is. If all names of an RT-DETR are there, it is
# one, and whatever remains is a buffer or two that need not be loaded.
#
# Observed (transformers 5.24.0, 2026-11-29): PP-DocLayoutV2 is an RT-DETR followed by a model that predicts the reading order
# of elements. Without the prefix `model.`, its state dict contains every name of RTDetrForObjectDetection of the same size.
# What remains is only `reading_order.…`, hundreds of tensors.
#
# Who is affected: anyone who recognises checkpoints by names, or loads them with strict=False. This one opens as an RT-DETR
# with classes of document elements, and half of the network is lost without a message. Use `model_type` in config.json.
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
