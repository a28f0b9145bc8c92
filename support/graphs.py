"""A training step as one CUDA graph: the GPU is told once, not kernel by kernel, what to do.

A step launches some 2,000 kernels, most of them small. Launching them takes longer than running
them: 78 ms, not 25, for 256 images of 64×64 on an H200 (docs/speed.md).
"""
import torch

from support import distributed

WARM_UP = 3                    # steps run as usual first: they compile, and make optimizers' states


def on_one_gpu(optimizers, device):
    """A Replay; None on a CPU, and where several processes average their gradients."""
    if device.type == "cuda" and distributed.WORLD_SIZE == 1:
        return Replay(optimizers)


class Replay:
    """replay(step, *tensors) -> tensor: what step(*tensors) does and returns, from the graph that
    the fourth call records.

    Later calls copy their tensors over the recorded ones: their shapes must stay. All else that
    `step` reads is as it was recorded, but for the optimizers' learning rates, which may change:
    the graph reads them from a tensor.
    """

    def __init__(self, optimizers):
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.calls, self.graph = 0, None

    def __call__(self, step, *tensors):
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._warm_up(step, tensors)
        if self.graph is None:
            self._record(step, tensors)
        for own, given in zip(self.tensors, tensors, strict=True):
            own.copy_(given)
        self.lr.copy_(self._rates(), non_blocking=True)
        self.graph.replay()
        return self.output.clone()

    def _rates(self):
        return torch.tensor([group["lr"] for group in self.groups])

    def _warm_up(self, step, tensors):
        """Not on the default stream, which cannot be recorded."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            output = step(*tensors)
        torch.cuda.current_stream().wait_stream(stream)
        return output

    def _record(self, step, tensors):
        """Nothing is computed yet. Outside the graph, the optimizers stay as they were."""
        self.tensors = [tensor.clone() for tensor in tensors]
        self.lr = self._rates().to(tensors[0].device)
        before = [dict(group) for group in self.groups]
        for group, lr in zip(self.groups, self.lr):
            group.update(lr=lr, capturable=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = step(*self.tensors)
        for group, old in zip(self.groups, before):
            group.clear()
            group.update(old)
