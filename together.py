"""Many processes as one: `torchrun --nproc_per_node N train.py …`, on CPUs or on GPUs.

In training, all of them draw the same whole batch from the same seed: images, flips, holes, t and
noise. Each runs the network on its own slice and hands the outputs round, so that every process
knows the loss of the whole batch, and its gradient up to rounding, whatever their number.
"""
import contextlib
import datetime
import os
import sys

import torch
import torch.distributed as dist

RANK, NUMBER = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class Shared(torch.nn.Module):
    """eps_model for a whole batch, each of the NUMBER processes computing its slice of it.

    The loss is the mean over the whole batch already, so the slices' gradients add up; the factor
    undoes the mean that DistributedDataParallel takes of them.
    """

    def __init__(self, net):
        super().__init__()
        self.net = torch.nn.parallel.DistributedDataParallel(net)

    def forward(self, x, t, hole):
        own = self.net(*(whole.chunk(NUMBER)[RANK] for whole in (x, t, hole)))
        own.register_hook(lambda gradient: NUMBER * gradient)
        outputs = [torch.empty_like(own) for _ in range(NUMBER)]
        dist.all_gather(outputs, own.detach())
        outputs[RANK] = own                                       # the only one with a gradient
        return torch.cat(outputs)


def own_device(name):
    """The device called so; of several GPUs, each process on this machine has one for itself."""
    own = f"cuda:{os.environ.get('LOCAL_RANK')}"
    return torch.device(own if NUMBER > 1 and name == "cuda" else name)


def share(net):
    """The network itself, or its share of the work if there are other processes."""
    return Shared(net) if NUMBER > 1 else net


@contextlib.contextmanager
def joined():
    """Meet the other processes. When one of them is lost, all end; the first says so."""
    if NUMBER == 1:
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                            timeout=datetime.timedelta(days=7))
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        if RANK == 0:
            print("another process of this job has ended, so all do; go on with --resume",
                  file=sys.stderr)
        os._exit(1)                                               # wait for nobody
    dist.destroy_process_group()


@contextlib.contextmanager
def first():
    """The block is run by process 0, which checks, complains and decodes for all; then by the
    others."""
    if RANK > 0:
        largest()                                                 # waits for all
    yield
    if RANK == 0:
        largest()


def largest(*numbers):
    """The largest of all the processes' numbers, 0 if there are none: a vote, over the CPUs."""
    vote = torch.tensor([0, *numbers]).max()
    if NUMBER > 1:
        dist.all_reduce(vote, dist.ReduceOp.MAX)
    return int(vote)
