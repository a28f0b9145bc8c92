"""Many processes as one: `torchrun --nproc_per_node N train.py …`, on CPUs or on GPUs.

In training, every process draws the random numbers of the whole batch from the same seed, and keeps
its slice of them: images, holes, t and noise. The slices are of equal size, so the mean of their
gradients, which DistributedDataParallel takes, is the gradient of the whole batch, up to rounding,
whatever the number of processes.
"""
import contextlib
import datetime
import os
import sys

import torch
import torch.distributed as dist

from support.cli import BadInput, one_line

RANK, WORLD_SIZE = (int(os.environ.get(name, default))
                    for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))


def own_device(name):
    """The device called so; of several GPUs, each process on this machine has one for itself."""
    own = f"cuda:{os.environ.get('LOCAL_RANK')}"
    return torch.device(own if WORLD_SIZE > 1 and name == "cuda" else name)


def share(batch):
    """This process's slice of what was drawn for the whole batch."""
    return batch.chunk(WORLD_SIZE)[RANK]


def parallel(net):
    """The network; with several processes, its gradient becomes the mean of all of theirs."""
    return torch.nn.parallel.DistributedDataParallel(net) if WORLD_SIZE > 1 else net


@contextlib.contextmanager
def joined():
    """Meet the other processes. When one of them is lost, all end; the first says so."""
    if WORLD_SIZE == 1:
        yield
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                                timeout=datetime.timedelta(days=7))
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"the {WORLD_SIZE} processes could not meet: {error}") from None
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        if RANK == 0:
            print("another process of this job has ended, so all do; go on with --resume "
                  f"({one_line(error)})", file=sys.stderr)
        os._exit(1)                                               # wait for nobody
    dist.destroy_process_group()


@contextlib.contextmanager
def first():
    """The block is run by process 0, which checks, complains and decodes for all; then by the
    others."""
    if RANK > 0:
        barrier()
    yield
    if RANK == 0:
        barrier()


def barrier():
    """Wait for all processes, over the CPUs."""
    largest()


def largest(*numbers):
    """The largest of all the processes' numbers, 0 if there are none: a vote, over the CPUs."""
    vote = torch.tensor([0, *numbers]).max()
    if WORLD_SIZE > 1:
        dist.all_reduce(vote, dist.ReduceOp.MAX)
    return int(vote)


def mean(number):
    """The mean of a scalar tensor over the processes."""
    if WORLD_SIZE > 1:
        number = number.clone()
        dist.all_reduce(number, dist.ReduceOp.SUM)
        number /= WORLD_SIZE
    return number
