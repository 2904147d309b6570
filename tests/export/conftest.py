from __future__ import annotations

import hashlib
import json

import pytest

from nextdetr.export import graph as graphs
from nextdetr.models import convnextv2
from tests.export.helpers import SIZE, checkpoint

#: All kinds of layers that the shipped models have, each few times: an exporter's minutes go by their number.
COMPACT = """
nc: 3
image_size: 128
normalize: imagenet
backbone:
  - [-1, 1, convnextv2_atto, []]
head:
  - [-1, 1, Conv, [64, 1, 1, None, 1, 1, False]]
  - [-1, 1, AIFI, [64, 4]]
  - [-1, 1, Conv, [64, 3, 1]] # 7, stride 32
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [3, 1, Conv, [64, 1, 1]]
  - [[-2, -1], 1, Concat, [1]]
  - [-1, 2, RepC3, [64]] # 11, stride 16
  - [[11, 7], 1, DECODER, [nc, 64, 50, 4, 4, 3, 64]]
"""


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    """Checkpoints with D-FINE's and RT-DETR's decoder, on ConvNeXt V2 with one narrow block a stage, by decoder."""
    folder = tmp_path_factory.mktemp("compact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convnextv2, "SIZES", {"atto": convnextv2.SizeSpec((1, 1, 1, 1), (16, 32, 48, 64))})
        files = {}
        for decoder in ("DFINEDecoder", "RTDETRDecoder"):
            (folder / f"{decoder}.yaml").write_text(COMPACT.replace("DECODER", decoder))
            files[decoder] = checkpoint(folder, folder / f"{decoder}.yaml", SIZE)
        yield files


_TRACED: dict[str, graphs.Traced] = {}
_WRITTEN: dict[tuple[str, str], bytes] = {}


@pytest.fixture(autouse=True)
def _record_each_graph_once(monkeypatch):
    """Record and translate a graph once for all tests that export it: it takes most of their time."""

    def key(graph):
        digest = hashlib.sha256(f"{graph}{json.dumps(graph.contract.to_metadata(), sort_keys=True)}".encode())
        for tensor in graph.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def trace(graph):
        name = key(graph)
        if name not in _TRACED:
            _TRACED[name] = graphs.trace_graph(graph)
        return _TRACED[name]

    def write(traced, contract, path):
        owner = next((name for name, known in _TRACED.items() if known is traced), "")
        name = (owner, json.dumps(contract.to_metadata(), sort_keys=True))
        if not owner or name not in _WRITTEN:
            write_onnx(traced, contract, path)
            _WRITTEN[name] = path.read_bytes()
        path.write_bytes(_WRITTEN[name])
        return path

    onnx = pytest.importorskip("nextdetr.export.onnx")
    write_onnx = onnx.write_onnx
    monkeypatch.setattr("nextdetr.export.run.trace_graph", trace)
    monkeypatch.setattr(onnx, "write_onnx", write)
