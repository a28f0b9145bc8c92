"""Recording a training step: the same losses and weights, step by step, as without."""
import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import data
import muon
import train
from ddpm import DDPM
from schedules import cosine_betas
from support import graphs

ARGV = ["--data", "synthetic", "--size", "16", "--widths", "16", "32", "--blocks", "1",
        "--no-bf16"]


def tensors(part):
    return [leaf for leaf in tree_leaves(part) if isinstance(leaf, torch.Tensor)]


class Graph:
    """On the CPU, what a CUDA graph is on a GPU: operations that are recorded, not computed, with
    the tensors that they read and write; and done again by `replay`."""

    def __init__(self):
        self.operations = []

    def replay(self):
        for operation, args, kwargs, outputs in self.operations:
            for old, new in zip(outputs, tensors(operation(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recording(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph, self.before = graph, {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        for tensor in tensors(args):
            self.before.setdefault(id(tensor), (tensor, tensor.clone()))
        output = operation(*args, **(kwargs or {}))
        self.graph.operations.append(tree_map_only(
            torch.Tensor, torch.Tensor.detach, (operation, args, kwargs or {}, tensors(output))))
        return output

    def __exit__(self, *error):
        super().__exit__(*error)
        with torch.no_grad():
            for tensor, value in reversed(self.before.values()):      # as if never computed
                if 0 not in tensor.stride():                          # of a tensor that is expanded
                    tensor.copy_(value)


class Stream:
    def wait_stream(self, stream):
        pass


@pytest.fixture
def device(request, monkeypatch):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if request.param == "cpu":
        for name, stand_in in {"Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph,
                               "stream": contextlib.nullcontext, "graph": Recording}.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
    return request.param


def run(device, recorded, coarse):
    """Losses, weights and the optimizers' settings after eight steps."""
    argv = [*ARGV, "--device", device, *(["--coarse", "8"] if coarse else [])]
    args, _ = train.parse(argv)
    net, _, *optimizers = train.build(args, torch.device(device)).values()
    ddpm = DDPM(cosine_betas(50).to(device), "v")
    replay = graphs.Replay(optimizers) if recorded else None
    images, generator = data.synthetic(40, 16).to(device), torch.Generator().manual_seed(0)
    losses = []
    for step in range(8):
        train.set_lr(optimizers, (0.02, 0.003), train.lr_factor(step, 8, 3))
        x0 = train.draw_images(images, 4, generator, device)
        hole = train.draw_holes(4, 16, generator, device)
        losses.append(train.algorithm_1(ddpm, net, optimizers, x0, hole, generator,
                                        coarse=x0.flip(3) if coarse else None, replay=replay))
    if recorded:
        assert replay.graph is not None
    settings = [{name: value for name, value in group.items() if name != "params"}
                for optimizer in optimizers for group in optimizer.param_groups]
    matrices, _ = muon.split(net)             # not the biases, some of whose gradients are rounding
    return torch.stack(losses), matrices, settings


@pytest.mark.parametrize("device, coarse", [("cpu", False), ("cpu", True), ("cuda", False)],
                         indirect=["device"])
def test_a_recorded_step_is_the_step(device, coarse):
    losses, weights, settings = run(device, False, coarse)
    recorded = run(device, True, coarse)
    assert len(losses.unique()) == len(losses)
    torch.testing.assert_close(recorded[0], losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(recorded[1], weights, rtol=1e-3, atol=1e-4)
    assert recorded[2] == settings
