"""Order, sizes, ranks and resuming; the same batches from any number of workers; errors and signals in workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr.data import workers as workers_module
from nextdetr.data.dataset import DetectionDataset
from nextdetr.data.loader import EpochSampler, build_eval_loader, build_loader
from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.data.signals import STOPPING
from nextdetr.data.transforms import TrainTransform
from nextdetr.data.workers import collate
from nextdetr.errors import ConfigError, DataError, TrainingError
from nextdetr.structures import Target


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, records = tmp_path_factory.mktemp("images"), []
    for number in range(11):
        path = folder / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
        boxes = np.array([[5, 5, 40, 40], [20, 10, 65, 48]], np.float32)[: number % 3]
        records.append(
            ImageRecord(
                path, number, 70, 50, boxes, np.zeros(len(boxes), np.int64), np.zeros(len(boxes), bool), boxes[:, 0]
            )
        )
    return DetectionData("toy", "train", ["a"], [1], records, [])


@pytest.fixture
def make_loader(data):
    made = []

    def make(workers, cache_bytes=0, **options):
        sampler = EpochSampler(
            len(data.records), 4, **({"seed": 1, "base_size": 64, "multi_scale": (32, 64, 96)} | options)
        )
        made.append(build_loader(DetectionDataset(data, TrainTransform(), 1, cache_bytes=cache_bytes), sampler, workers))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def fingerprint(batches):
    return [
        (b.images.clone(), [t.boxes.clone() for t in b.targets], [t.labels.tolist() for t in b.targets], b.indices)
        for b in batches
    ]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a[0], b[0])
        assert all(torch.equal(p, q) for p, q in zip(a[1], b[1], strict=True))
        assert a[2:] == b[2:]


def indices(batches):
    return [key.index for batch in batches for key in batch]


def test_an_epoch_shows_every_image_and_fills_the_last_batch():
    sampler = EpochSampler(11, 4, seed=0, base_size=64)
    batches = list(sampler.epoch(0))
    assert len(batches) == len(sampler) == 3
    assert [len(batch) for batch in batches] == [4, 4, 4]
    shown = indices(batches)
    assert sorted(shown[:11]) == list(range(11))
    assert shown[11] == shown[0]
    assert [key.copy for batch in batches for key in batch] == [0] * 11 + [1]


def test_three_images_make_a_batch_of_eight():
    (batch,) = EpochSampler(3, 8, seed=0, base_size=64).epoch(0)
    assert len(set(batch)) == 8  # repeated images, each with an augmentation of its own
    assert np.bincount([key.index for key in batch]).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_order_depends_on_seed_and_epoch_alone():
    orders = [indices(EpochSampler(50, 5, seed=seed, base_size=64).epoch(epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert indices(EpochSampler(50, 5, seed=1, base_size=64).epoch(1)) == orders[3]
    assert indices(EpochSampler(50, 5, seed=1, base_size=64, shuffle=False).epoch(1)) == list(range(50))


def test_sizes():
    sampler = EpochSampler(400, 4, seed=0, base_size=64, multi_scale=(32, 64, 96))
    assert sampler.largest_size == 96
    sizes = [{key.size for key in batch} for batch in sampler.epoch(0)]
    assert all(len(size) == 1 for size in sizes)
    counts = np.bincount([size.pop() // 32 for size in sizes])[1:]
    assert counts.min() > 15
    assert {key.size for batch in sampler.epoch(0, strong=False) for key in batch} == {64}
    assert {key.strong for batch in sampler.epoch(0, strong=False) for key in batch} == {False}


@pytest.mark.parametrize(("length", "batch_size", "world"), [(24, 4, 2), (25, 4, 3), (3, 4, 2)])
def test_ranks_share_the_images(length, batch_size, world):
    options = {"seed": 0, "base_size": 64, "multi_scale": (32, 64, 96), "world": world}
    ranks = [list(EpochSampler(length, batch_size, rank=rank, **options).epoch(2)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    shown = [key for batches in ranks for batch in batches for key in batch]
    assert len(set(shown)) == len(shown)
    assert {key.index for key in shown} == set(range(length))
    for at_once in zip(*ranks, strict=True):
        assert len({key.size for batch in at_once for key in batch}) == 1


def test_drop_last_and_bad_arguments():
    sampler = EpochSampler(11, 4, base_size=64, drop_last=True)
    assert len(sampler) == 2
    assert len(set(indices(sampler.epoch(0)))) == 8
    with pytest.raises(ConfigError, match="3 images"):
        EpochSampler(3, 4, base_size=64, drop_last=True)
    with pytest.raises(DataError, match="no image"):
        EpochSampler(0, 4, base_size=64)
    with pytest.raises(ValueError, match="rank 2"):
        EpochSampler(3, 4, base_size=64, rank=2, world=2)


def test_workers_change_nothing(make_loader):
    torch.manual_seed(0)
    # Wakes OpenMP's threads before the fork; a worker that waited for them would hang here.
    torch.nn.functional.conv2d(torch.rand(4, 16, 64, 64), torch.rand(16, 16, 3, 3))
    state = torch.get_rng_state()
    inline, forked, cached = make_loader(0), make_loader(2), make_loader(2, cache_bytes=10**6)
    for epoch, strong in ((0, True), (1, True), (2, False)):
        expected = fingerprint(inline.epoch(epoch, strong=strong))
        assert_same(fingerprint(forked.epoch(epoch, strong=strong)), expected)
        assert_same(fingerprint(cached.epoch(epoch, strong=strong)), expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_mid_epoch(make_loader, workers):
    loader = make_loader(workers)
    whole = fingerprint(loader.epoch(3))
    assert_same(fingerprint(loader.epoch(3, start=4)), whole[1:])
    assert list(loader.epoch(3, start=12)) == []


def test_an_epoch_goes_on_with_other_batches_and_processes():
    """After eight of 23 images, with two processes and batches of two: each remaining image is used once."""
    first = [EpochSampler(23, 2, seed=3, base_size=64, rank=rank, world=2) for rank in range(2)]
    had = [key.index for sampler in first for batch in list(sampler.epoch(1))[:2] for key in batch]
    for batch_size, world in ((2, 1), (3, 2), (5, 3)):
        ranks = [EpochSampler(23, batch_size, seed=3, base_size=64, rank=rank, world=world) for rank in range(world)]
        batches = [list(sampler.epoch(1, start=8)) for sampler in ranks]
        assert {len(found) for found in batches} == {-(-15 // (batch_size * world))}
        left = [key for at_once in zip(*batches, strict=True) for batch in at_once for key in batch][:15]
        assert sorted(had + [key.index for key in left]) == list(range(23))


def test_strong_augmentation_may_end_inside_an_epoch():
    sampler = EpochSampler(20, 2, seed=0, base_size=64, multi_scale=(32, 96), world=2)
    strong = [batch[0].strong for batch in sampler.epoch(0, strong=lambda place: place < 12)]
    assert strong == [True, True, True, False, False]
    assert {key.size for batch in list(sampler.epoch(0, start=12, strong=lambda place: place < 12)) for key in batch} == {
        64
    }


def test_an_epoch_may_be_left_early(make_loader):
    loader = make_loader(2)
    expected = fingerprint(make_loader(0).epoch(1))
    for _ in loader.epoch(0):
        break
    assert_same(fingerprint(loader.epoch(1)), expected)


def test_batch_shapes(make_loader):
    for batch in make_loader(0).epoch(0):
        size = batch.images.shape[-1]
        assert batch.images.shape == (4, 3, size, size)
        assert size in {32, 64, 96}
        assert len(batch.targets) == len(batch.indices) == 4
        assert all(target.boxes.shape == (len(target), 4) for target in batch.targets)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_shows_every_image_once_in_order(data, workers):
    dataset = DetectionDataset(data)
    loader = build_eval_loader(dataset, 64, batch_size=4, workers=workers)
    for _ in range(2):
        batches = list(loader)
        assert len(loader) == len(batches) == 3
        assert [index for batch in batches for index in batch.indices] == list(range(11))
        assert [len(batch.targets) for batch in batches] == [4, 4, 3]
    loader.close()
    parts = [build_eval_loader(dataset, 64, batch_size=4, rank=rank, world=2) for rank in range(2)]
    assert sorted(index for part in parts for batch in part for index in batch.indices) == list(range(11))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_without_a_workers_traceback(data, tmp_path, workers):
    bad = tmp_path / "broken.png"
    bad.write_bytes(b"not an image")
    record = data.records[0]
    records = [*data.records[:3], ImageRecord(bad, 99, 70, 50, record.boxes, record.labels, record.crowd, record.areas)]
    dataset = DetectionDataset(DetectionData("toy", "train", ["a"], [1], records, []))
    loader = build_eval_loader(dataset, 64, batch_size=4, workers=workers)
    with pytest.raises(DataError, match=r"broken\.png") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)
    loader.close()


def test_workers_ignore_signals_to_the_group_and_a_killed_one_is_reported(make_loader):
    """Ctrl-C, ``timeout``, Slurm and systemd signal all processes of a group: the main one answers."""
    loader = make_loader(1)
    expected = fingerprint(loader.epoch(0))
    (worker,) = children()
    for kind in (*STOPPING, signal.SIGTERM):
        os.kill(worker, kind)
    assert_same(fingerprint(loader.epoch(0)), expected)
    assert children() == [worker]
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(TrainingError, match="memory"):
        fingerprint(loader.epoch(1))


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="POSIX only")
def test_signals_wait_while_workers_start(make_loader, monkeypatch):
    seen = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    start = multiprocessing.process.BaseProcess.start
    monkeypatch.setattr(
        multiprocessing.process.BaseProcess, "start",
        lambda process: (seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])), start(process))[1],
    )  # fmt: skip
    list(make_loader(2).epoch(0))
    assert len(seen) == 2
    assert all(set(STOPPING) <= mask for mask in seen)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


STUCK = """
import signal, sys, time
import numpy as np
from nextdetr.data import workers

class Stuck:  # as an image on a network disk that does not answer
    def __len__(self): return 4
    def __getitem__(self, key): time.sleep(1000)

if __name__ == "__main__":
    import torch.utils.data._utils as parts
    import torch.utils.data.dataloader
    parts.MP_STATUS_CHECK_INTERVAL = 0.2
    stream = workers.BatchStream(Stuck(), workers=1)
    signal.setitimer(signal.ITIMER_REAL, 1)
    def alarm(*_):
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, alarm)
    try:
        next(stream.run([[0]]))
    except KeyboardInterrupt:
        print("ends", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="POSIX only")
def test_a_worker_that_hangs_keeps_nobody(tmp_path):
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr


def test_close_ends_the_workers(make_loader):
    loader = make_loader(2)
    list(loader.epoch(0))
    assert len(children()) == 2
    loader.close()
    deadline = time.monotonic() + 20
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children()


def test_too_little_shared_memory_loads_in_the_main_process(data, monkeypatch, caplog):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(workers_module.shutil, "disk_usage", lambda _path: usage)
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm")
    loader = build_eval_loader(DetectionDataset(data), 64, workers=2)
    assert len(list(loader)) == 2
    assert not children()
    assert "shared memory" in caplog.text


def test_collate_one():
    image = torch.rand(3, 32, 32)
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    batch = collate([(image, target, 5)])
    assert batch.images.shape == (1, 3, 32, 32)
    assert batch.indices == [5]


@pytest.fixture(autouse=True)
def others(monkeypatch):
    """Children that earlier tests have left, such as a compiler's."""
    monkeypatch.setattr(sys.modules[__name__], "OTHERS", living_children())


OTHERS: list[int] = []


def children():
    """Ids of the living processes that this test has started."""
    return [child for child in living_children() if child not in OTHERS]


def living_children():
    import psutil

    return [child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


LONG_TMPDIR = """
import numpy as np, sys
from pathlib import Path
from PIL import Image
from nextdetr.data.dataset import DetectionDataset
from nextdetr.data.loader import build_eval_loader
from nextdetr.data.records import DetectionData, ImageRecord
path = Path(sys.argv[1])
Image.new("RGB", (8, 8)).save(path)
none = np.zeros((0, 4), np.float32)
record = ImageRecord(path, 0, 8, 8, none, np.zeros(0, np.int64), np.zeros(0, bool), none[:, 0])
loader = build_eval_loader(DetectionDataset(DetectionData("toy", "val", ["a"], [1], [record], [])), 32, workers=1)
print(sum(len(batch.images) for batch in loader))
loader.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers import torch anew")
def test_workers_behind_a_long_tmpdir(tmp_path):
    """Socket paths are limited in length; with a longer TMPDIR batches were lost, and the loader waited forever."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LONG_TMPDIR, str(tmp_path / "a.png")], env={**os.environ, "TMPDIR": str(long)},
        timeout=120, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "1", done.stderr
    assert "Traceback" not in done.stderr
    assert not list(long.iterdir())


def test_without_a_short_folder_a_sentence(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 100)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(workers_module, "SHORT_FOLDERS", ())
    with pytest.raises(
        TrainingError, match=r"too long a path .*set TMPDIR to one of at most 71 characters, or use --workers 0"
    ):
        workers_module._make_socket_folder()
