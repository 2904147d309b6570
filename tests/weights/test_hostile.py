"""Damaged and hostile files: one sentence each, nothing executed, memory bounded."""

from __future__ import annotations

import builtins
import collections
import io
import os
import pathlib
import pickle
import runpy
import struct
import subprocess
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nextdetr.errors import WeightsError
from nextdetr.weights.reader import read_tensors
from tests.weights.torch_files import Runs, dumps, number, state_dict, storage, tensor, text, torch_zip

FOUR = {"0": bytes(16)}


def refused(path, cause):
    """Check that a file is refused in one sentence that names it; return the sentence."""
    with pytest.raises(WeightsError, match=cause) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 600
    return message


@pytest.fixture
def canary(tmp_path):
    """Return a path that every attack of the test would create."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


ATTACKS = {
    "os.system": lambda canary: Runs(os.system, f"touch {canary}"),
    "subprocess": lambda canary: Runs(subprocess.check_call, ["touch", str(canary)]),
    "eval": lambda canary: Runs(eval, f"open({str(canary)!r}, 'w')"),
    "exec": lambda canary: Runs(exec, f"open({str(canary)!r}, 'w')"),
    "open": lambda canary: Runs(builtins.open, str(canary), "w"),
    "io.open": lambda canary: Runs(io.open, str(canary), "w"),
    "runpy": lambda canary: Runs(runpy.run_path, str(canary)),
    "import": lambda canary: Runs(__import__, "antigravity"),
    "loads": lambda canary: Runs(pickle.loads, pickle.dumps(Runs(os.system, f"touch {canary}"))),
    "torch.load": lambda canary: Runs(torch.load, str(canary)),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_that_would_run_code(tmp_path, canary, attack, zipped, protocol):
    path = tmp_path / "a.pt"
    content = {"model": {"w": torch.ones(2)}, "extra": ATTACKS[attack](canary)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    assert "nothing in it was run" in refused(path, "would run code")


def test_the_attack_of_these_tests_is_a_real_one(tmp_path):
    path = tmp_path / "canary"
    torch.save({"w": Runs(os.system, f"touch {path}")}, tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert path.exists()


@pytest.mark.parametrize(
    "function", [pathlib.Path.touch, pathlib.Path.write_text, collections.namedtuple, getattr, torch.save, print]
)
def test_a_call_of_anything_else_does_not_happen(tmp_path, canary, function, capsys):
    """Not on any list of attacks, but not called either: the tensors are read, and a stub is left of the call."""
    torch.save(
        {"model": {"w": torch.ones(2)}, "extra": Runs(function, pathlib.PosixPath(canary), "_name")}, tmp_path / "a.pt"
    )
    file = read_tensors(tmp_path / "a.pt")
    assert list(file.tensors) == ["w"]
    assert capsys.readouterr().out == ""
    assert isinstance(file.extra["extra"], str)


class Setting(nn.Module):
    called: list = []  # noqa: RUF012 - what would be called is noted here

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def __setstate__(self, state):
        self.called.append("setstate")
        super().__setstate__(state)

    def __new__(cls, *args):
        cls.called.append("new")
        return super().__new__(cls)


def test_classes_that_are_there_are_not_used_either(tmp_path):
    torch.save({"model": Setting()}, tmp_path / "a.pt")
    Setting.called.clear()
    file = read_tensors(tmp_path / "a.pt")
    assert torch.equal(file.tensors["w"], torch.ones(2))
    assert Setting.called == []


def test_tricks_of_single_instructions(tmp_path, canary):
    command = text(f"touch {canary}")
    good = text("w") + tensor()
    tricks = {
        "INST": b"(" + command + b"iposix\nsystem\n",
        "OBJ": b"(cposix\nsystem\n" + command + b"o",
        "STACK_GLOBAL": text("posix") + text("system") + b"\x93" + command + b"\x85R",
        "NEWOBJ": b"cposix\nsystem\n" + command + b"\x85\x81",
        "NEWOBJ_EX": b"cposix\nsystem\n" + command + b"\x85}\x92",
        "dotted": text("torch") + text("os.system") + b"\x93" + command + b"\x85R",
    }
    for name, trick in tricks.items():
        path = torch_zip(tmp_path / f"{name}.pt", b"\x80\x04}(" + good + text("x") + trick + b"u.", FOUR)
        refused(path, r"would run code \((posix\.system|torch\.os\.system)\)")


@pytest.mark.parametrize(
    ("trick", "cause"),
    [
        (b"cos\nsystem\n", "would run code"),
        (text("0") + b"Q", "not a tensor storage"),
        (b"(" + text("module") + text("os.system") + text("f") + text("source") + b"tQ", "a module has no class"),
        (b"(" + text("storage") + b"ctorch\nQInt8Storage\n" + text("0") + text("cpu") + number(4) + b"tQ", "quantised"),
        (b"P0\n", "the instruction PERSID"),
        (b"\x82\x01", "the instruction EXT1"),
        (b"]}b", "damaged"),
        (b"ctorch.nn\nLinear\n}b", "damaged"),
        (b"h\x07", "damaged"),
        (b"tttt", "damaged"),
        (b"00000", "damaged"),
        (b"K\x01)R", "something that is not a class is called"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "damaged"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))\x89}tR", "a tensor has no storage"),
        (b"\xff", "damaged"),
    ],
)
def test_instructions_that_make_no_sense(tmp_path, trick, cause):
    path = torch_zip(tmp_path / "a.pt", b"\x80\x02}(" + text("w") + tensor() + text("x") + trick + b"u.", FOUR)
    refused(path, cause)


SHAPES = {
    "too long": (tensor(size=(5,)), "outside its storage"),
    "offset": (tensor(offset=1), "outside its storage"),
    "huge offset": (tensor(offset=1 << 61), "outside its storage"),
    "stride": (tensor(size=(2, 2), stride=(3, 1)), "outside its storage"),
    "negative size": (tensor(size=(-4,)), "negative or impossible size"),
    "negative stride": (tensor(size=(2,), stride=(-1,), offset=3), "negative or impossible size"),
    "negative offset": (tensor(offset=-1), "no storage, or starts before it"),
    "expanded": (tensor(size=(1 << 40,), stride=(0,)), "outside its storage"),
    "overflow": (tensor(size=(1 << 61, 1 << 61), stride=(0, 0)), "outside its storage"),
    "no stride": (tensor(size=(2, 2), stride=(1,)), "has no shape"),
    "many dimensions": (tensor(size=(1,) * 100, stride=(1,) * 100), "negative or impossible size"),
    "storage of negative size": (tensor(of=storage(numel=-4)), "no proper name or size"),
    "storage that is not there": (tensor(of=storage(key="7")), "the storage of w is missing"),
    "storage of another file": (tensor(of=storage(key="../../version")), "is missing"),
    "storage that is shorter": (tensor(size=(8,), of=storage(numel=8)), "has only 16 bytes"),
    "storage of a terabyte": (tensor(of=storage(numel=1 << 40)), "has only 16 bytes"),
    "storage of wider elements": (tensor(of=storage(kind="DoubleStorage")), "has only 16 bytes"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_that_reach_out_of_their_storage(tmp_path, shape):
    instructions, cause = SHAPES[shape]
    refused(torch_zip(tmp_path / "a.pt", state_dict(w=instructions), FOUR), cause)


def test_the_hand_made_file_is_a_good_one_but_for_what_is_tested(tmp_path):
    path = torch_zip(
        tmp_path / "a.pt", state_dict(w=tensor(size=(2, 2), stride=(1, 2))), {"0": struct.pack("<4f", 1, 2, 3, 4)}
    )
    assert read_tensors(path).tensors["w"].tolist() == [[1, 3], [2, 4]]
    assert torch.equal(torch.load(path, weights_only=True)["w"], read_tensors(path).tensors["w"])


def test_many_tensors_of_one_storage_add_up(tmp_path):
    shared = {"0": bytes(1 << 20)}
    one = tensor(size=(1 << 18,), of=storage(numel=1 << 18))
    path = torch_zip(tmp_path / "a.pt", state_dict(**{f"w{k}": one for k in range(40)}), shared)
    refused(path, "its tensors state 40 MB, but the file has 1 MB")


def test_one_storage_of_two_sizes(tmp_path):
    two = {"a": tensor(size=(2,), of=storage(numel=2)), "b": tensor(size=(4,), of=storage(numel=4))}
    found = read_tensors(torch_zip(tmp_path / "a.pt", state_dict(**two), FOUR)).tensors
    assert (found["a"].shape, found["b"].shape) == ((2,), (4,))


def test_zip_archives(tmp_path):
    good = state_dict(w=tensor())
    bomb = {"0": bytes(50 << 20)}
    path = torch_zip(tmp_path / "bomb.pt", good, bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused(path, "is compressed")
    path = torch_zip(tmp_path / "a.pt", good, FOUR)
    content = bytearray(path.read_bytes())
    for length in (30, 100, len(content) // 2, len(content) - 30):
        (tmp_path / "cut.pt").write_bytes(content[:length])
        refused(tmp_path / "cut.pt", "incomplete zip archive")
    at = content.rfind(b"PK\x05\x06")
    for offset, value in (
        (8, b"\xf0\xf0\xf0\xf0"),
        (12, b"\xf0\xff\xff\x7f"),
        (16, b"\xf0\xff\xff\x7f"),
        (10, b"\xff\xff"),
    ):
        lies = bytearray(content)
        lies[at + offset : at + offset + len(value)] = value
        (tmp_path / "lies.pt").write_bytes(lies)
        refused(tmp_path / "lies.pt", "incomplete zip archive")
    entry = content.find(b"PK\x01\x02")
    for offset, value in ((20, struct.pack("<2L", 1 << 30, 1 << 30)), (42, b"\xf0\xff\xff\x7f"), (28, b"\xff\xff")):
        lies = bytearray(content)
        lies[entry + offset : entry + offset + len(value)] = value
        (tmp_path / "lies.pt").write_bytes(lies)
        refused(tmp_path / "lies.pt", "incomplete zip archive")


def test_zip_archives_of_other_things(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "a.pt", "not one that torch.save wrote")
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "b.pt"))
    refused(tmp_path / "b.pt", "TorchScript program")
    refused(torch_zip(tmp_path / "c.pt", state_dict(w=tensor()), FOUR, byteorder=b"big"), "another byte order")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_anywhere(tmp_path, zipped):
    torch.save({"a": torch.randn(100), "b": torch.randn(50)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "a.pt").read_bytes()
    for length in range(1, len(content) - 1, max(1, len(content) // 97)):
        (tmp_path / "cut.pt").write_bytes(content[:length])
        refused(tmp_path / "cut.pt", ".")


NO_WEIGHTS = {
    "empty": (b"", "the file is empty"),
    "text": (b"epoch,loss\n1,0.5\n" * 30, "a text file"),
    "long text": ("é" * 5000).encode(),
    "pickle as text": (b"cos\nsystem\n(S'touch canary'\ntR.", "a text file"),
    "pickle": (dumps({"a": 1}), "a Python pickle that torch.save did not write"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "git-lfs pointer"),
    "page": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "a gzip archive"),
    "noise": (bytes(range(1, 255)) * 8, "neither safetensors nor"),
    "zeros": (bytes(5000), "neither safetensors nor"),
}
NO_WEIGHTS["long text"] = (NO_WEIGHTS["long text"], "a text file")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_is_no_weights_file(tmp_path, kind, suffix):
    path = tmp_path / f"a.{suffix}"
    content, cause = NO_WEIGHTS[kind]
    path.write_bytes(content)
    refused(path, "." if suffix == "safetensors" and kind in ("noise", "zeros") else cause)


def test_what_is_no_file(tmp_path):
    refused(tmp_path / "missing.pt", "no such file")
    refused(tmp_path, "a folder with no model.safetensors")
    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "pipe.pt", "not an ordinary file")
    for value in ([1, 2], torch.ones(2), {"epoch": 3}, {"model": {"a": {"b": torch.ones(1)}}}, None):
        torch.save(value, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", "there are no weights in it")


def test_safetensors_that_lie(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(100)}, path)
    content = path.read_bytes()
    for claim in (1 << 62, 1 << 30, len(content)):
        path.write_bytes(struct.pack("<Q", claim) + content[8:])
        refused(path, f"header states {claim:,} bytes")
    for bad in (content[:-1], content[:100], content.replace(b"[100]", b"[101]"), content.replace(b"[0,400]", b"[0,404]")):
        path.write_bytes(bad)
        refused(path, "safetensors")
    path.write_bytes(content.replace(b'"F32"', b'"F99"'))
    refused(path, "damaged or incomplete safetensors")
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 30) + b"{")
        file.truncate((1 << 30) + 8)  # sparse: it takes no disk
    refused(path, "header has 1,024 MB")


def test_quantised_and_sparse_tensors_are_named(tmp_path):
    torch.save({"a.weight": torch.ones(2), "b.weight": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", r"b\.weight is a tensor of a kind that is not read \(_rebuild_sparse_tensor")
