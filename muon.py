"""Muon: momentum whose matrices are made orthogonal before they are used (Jordan et al. 2024).

A gradient step is dominated by a few directions of a weight matrix. Muon gives every
direction the same length: with the momentum's singular value decomposition M = U S Vᵀ, the step is
U Vᵀ. The network learns as much from fewer images; docs/choices.md has the comparison with AdamW.
"""
import torch

A, B, C = 3.4445, -4.7750, 2.0315      # of the quintic: steep at 0, and near 1 once it is near 1


def orthogonalize(matrices, bf16=False):
    """U Vᵀ of each matrix M = U S Vᵀ, nearly: [N, rows, columns] -> the same shape, float32.

    Newton–Schulz iteration: X ← A X + B (X Xᵀ) X + C (X Xᵀ)² X from X = M / ‖M‖_F moves every
    singular value s to A s + B s³ + C s⁵; five steps take those above 0.01 to 0.7 … 1.1. Where
    products in bfloat16 are faster, they are exact enough.

    Each step multiplies X from the left by a polynomial of the small matrix X Xᵀ, so several steps
    need only products of that size and one with X at the end (Zhang et al. 2026). In bfloat16 that
    loses small singular values, so X Xᵀ is computed afresh after two.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    X = matrices.mT if tall else matrices
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp(min=1e-7)
    X = X.bfloat16() if bf16 else X.float()
    for steps in (2, 3) if bf16 else (5,):
        gram = X @ X.mT
        factor = product = quintic(gram)
        for _ in range(steps - 1):
            gram = factor @ gram @ factor
            factor = quintic(gram)
            product = factor @ product
        X = product @ X
    return (X.mT if tall else X).float()


def quintic(gram):
    """A I + B G + C G² of each matrix."""
    factor = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
    factor.diagonal(dim1=1, dim2=2).add_(A)
    return factor


class Muon(torch.optim.Optimizer):
    """For weights with two or more dimensions; a convolution's are [out, in · height · width].

    M ← μ M + (1-μ) G;  W ← (1 - lr · decay) W - lr · 0.2 √max(rows, columns) · UVᵀ of μ M + (1-μ) G

    (Nesterov's form: the new gradient G counts twice.) The factor gives a step the root mean square
    of AdamW's, about 0.2 lr (Liu et al. 2025, eq. 4), whatever the matrix's shape. `bf16`: UVᵀ is
    computed in bfloat16.
    """

    def __init__(self, parameters, lr=0.005, momentum=0.95, weight_decay=0.1, bf16=False):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.bf16 = bf16

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = {}                                      # parameters, by the shape of the matrix
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for shape, parameters in alike.items():
                self._update(parameters, shape, **group)

    def _update(self, parameters, shape, lr, momentum, weight_decay, **_):
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, momenta, momentum)
        steps = orthogonalize(torch.stack([matrix.flatten(1) for matrix in ahead]), bf16=self.bf16)
        steps *= lr * 0.2 * max(shape) ** 0.5               # lr may be a tensor: support/graphs.py
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_sub_(parameters, [step.view_as(parameter)
                                         for step, parameter in zip(steps, parameters)])


def split(net, smallest=4096):
    """(matrices, others): the parameters for Muon; and the few for AdamW, that is biases, norms
    and weights of at most `smallest` numbers."""
    matrices = [p for p in net.parameters() if p.ndim >= 2 and p.numel() > smallest]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in net.parameters() if id(p) not in chosen]
