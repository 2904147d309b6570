#!/usr/bin/env bash
# transformers' DEIMv2 does not compute what the code of DEIMv2's authors computes.
#
# Expected (written before testing): `Deimv2ForObjectDetection` is the authors' network under other names, as its RT-DETR is
# RT-DETR's. With the authors' setting, SiLU everywhere in the decoder, and their weights, it gives their boxes.
#
# Observed (transformers 5.24.0, 2026-11-29): `decoder_activation_function="silu"` only reaches the head of the position
# vectors. Box heads, the heads of the encoder and of the first plain box, and the quality heads keep ReLU, for which there
# is no setting. The position vectors are recomputed for each decoder layer, from the boxes that it refined. And the tokens
# go through an output layer, Linear and LayerNorm, before queries are selected.
# In the authors' repository (Intellindust-AI-Lab/DEIMv2, commit 3e491c6, engine/deim/deim_decoder.py; mlp_act and activation
# are silu in configs/base/deimv2.yml) all these heads have SiLU, the position vectors are computed once, before the loop, and
# there is no output layer, so none of their checkpoints has its tensors.
#
# Who is affected: anyone who converts the authors' checkpoints by names alone gets other boxes and scores, without a message.
# A test that compares a port of DEIMv2 with transformers passes for the wrong network.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 transformers==5.24.0

cat > "$work/look.py" <<'PY'
import torch
from transformers import Deimv2Config, Deimv2ForObjectDetection, HGNetV2Config

backbone = HGNetV2Config(out_indices=[2, 3, 4])
config = Deimv2Config(backbone_config=backbone, decoder_layers=3, num_queries=10, decoder_activation_function="silu")
model = Deimv2ForObjectDetection(config).eval()
decoder = model.model.decoder
calls = []
decoder.query_pos_head.register_forward_hook(lambda *_: calls.append(1))
with torch.no_grad():
    model(torch.zeros(1, 3, 64, 64))
heads = {
    "position": decoder.query_pos_head, "boxes": decoder.bbox_embed[0], "first box": decoder.pre_bbox_head,
    "encoder": model.model.enc_bbox_head, "quality": decoder.lqe_layers[0].reg_conf,
}
print("; ".join(f"{name} {type(head.act).__name__}" for name, head in heads.items()))
print(f"output layer {[type(part).__name__ for part in model.model.enc_output]}")
print(f"position vectors computed {len(calls)} times for {config.decoder_layers} layers")
PY
found=$(HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/look.py" 2>/dev/null)
echo "$found"
[ "$found" = "position SiLUActivation; boxes ReLU; first box ReLU; encoder ReLU; quality ReLU
output layer ['Linear', 'LayerNorm']
position vectors computed 3 times for 3 layers" ] || { echo "The behaviour has changed."; exit 1; }
