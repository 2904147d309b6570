"""The statistics, outputs and gradients of two processes are those of one with both batches."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from nextdetr.layers.syncnorm import SyncedBatchNorm2d, synchronize_norms


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4, momentum=0.03)
    )


def inputs():
    """Images whose halves differ in mean and spread, so that statistics of one half are wrong; and weights of the loss."""
    generator = torch.Generator().manual_seed(8)
    images = torch.randn(6, 3, 12, 12, generator=generator) * torch.linspace(0.5, 4, 6).view(6, 1, 1, 1)
    return images + torch.linspace(-3, 9, 6).view(6, 1, 1, 1), torch.randn(6, 4, 8, 8, generator=generator)


def work(rank, folder, split):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = network()
    assert synchronize_norms(model) == 2
    images, weights = inputs()
    part = slice(0, split) if rank == 0 else slice(split, 6)
    x = images[part].clone().requires_grad_()
    out = model(x)
    (out * weights[part]).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    for gradient in gradients:
        dist.all_reduce(gradient)
    torch.save((out.detach(), x.grad, gradients, model.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    split = 2  # batches of different sizes
    multiprocessing.spawn(work, (str(tmp_path), split), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    model, (images, weights) = network(), inputs()
    x = images.clone().requires_grad_()
    out = model(x)
    (out * weights).sum().backward()
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(torch.cat((first[0], second[0])), out.detach(), **close)
    torch.testing.assert_close(torch.cat((first[1], second[1])), x.grad, **close)
    for rank in (first, second):
        torch.testing.assert_close(rank[2], [parameter.grad for parameter in model.parameters()], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(rank[3], dict(model.state_dict()), **close)


def test_alone_it_is_torchs():
    plain, synced = network(), network()
    synchronize_norms(synced)
    assert isinstance(synced[1], SyncedBatchNorm2d)
    images, _ = inputs()
    assert torch.equal(plain(images), synced(images))
    assert torch.equal(plain.eval()(images), copy.deepcopy(synced).eval()(images))
    assert list(plain.state_dict()) == list(synced.state_dict())
