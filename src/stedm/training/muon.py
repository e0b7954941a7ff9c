"""Muon: AdamW for vectors, an orthogonalised step for matrices. For trainings as short as ours."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from stedm.ranks import gathered, place, share
from stedm.training.sharding import rows_here

_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, *, iterations: int = 4) -> Tensor:
    """Bring the singular values of matrices (n, rows, columns) near 1 and keep the singular vectors.

    Newton-Schulz iteration with the coefficients of Jordan (2024), https://kellerjordan.github.io/posts/muon. Each step
    multiplies x by a polynomial of its Gram matrix x x^T, which is smaller: the polynomials are multiplied with each
    other, and the product with x once. For the kernels of a convolution that is less than half of the work.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    gram = x @ x.mT
    product = factor = _polynomial(gram)
    for _ in range(iterations - 1):
        gram = factor @ gram @ factor
        factor = _polynomial(gram)
        product = factor @ product
    x = product @ x
    return x.mT if tall else x


def _polynomial(gram: Tensor) -> Tensor:
    a, b, c = _QUINTIC
    result = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result


class Muon(torch.optim.AdamW):
    """AdamW whose matrices (kernels flattened) step along their orthogonalised Nesterov momentum (Jordan 2024).

    The step has the size AdamW's would have (Liu 2025, arXiv 2502.16982: 0.2 x root of the longer side), so learning
    rate and weight decay mean the same for all. The orthogonalisation is in single precision and over all matrices of
    a shape at once: in bfloat16, as timm and torch have it, a processor without bfloat16 takes ten times as long.

    Sharded matrices (`sharding.py`) are put together, all of a shape at a time, because some rows of one have other
    singular vectors than the whole: each of W ranks orthogonalises every W-th, and takes its rows of all of them.

    parameters: to optimise. momentum: decay of the matrices' momentum; the other options are AdamW's.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, momentum: float = 0.95, **options) -> None:  # type: ignore[no-untyped-def]
        super().__init__(parameters, **options)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step; matrices without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = {}
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.ndim >= 2 and p.grad is not None]
            self._step_matrices(matrices, learning_rate=group["lr"], weight_decay=group["weight_decay"])
            gradients |= {p: p.grad for p in matrices}
        for p in gradients:
            p.grad = None  # AdamW leaves alone what has no gradient
        super().step()
        for p, gradient in gradients.items():
            p.grad = gradient
        return loss

    def _step_matrices(self, matrices: list[nn.Parameter], *, learning_rate: float, weight_decay: float) -> None:
        by_shape = defaultdict(list)
        for p in matrices:
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
                state["step"] = torch.zeros(())  # AdamW looks for it when a state is restored
            gradient = rows_here(p.grad)
            momentum = rows_here(state["momentum"]).lerp_(gradient, 1 - self.momentum)
            direction = gradient.lerp(momentum, self.momentum).flatten(1)
            by_shape[p.shape[0], p.numel() // p.shape[0]].append((p, direction))
        for (rows, columns), pairs in by_shape.items():
            directions = torch.stack([direction for _, direction in pairs])
            sharded = isinstance(pairs[0][0], DTensor)
            directions = _orthogonalise_sharded(directions, rows) if sharded else orthogonalise(directions)
            size = learning_rate * 0.2 * max(rows, columns) ** 0.5
            for (p, _), direction in zip(pairs, directions, strict=True):
                weights = rows_here(p)
                weights.mul_(1 - learning_rate * weight_decay).add_(direction.view_as(weights), alpha=-size)


def _orthogonalise_sharded(parts: Tensor, rows: int) -> Tensor:
    """This rank's rows of n matrices, and of the orthogonalised ones: (n, r, columns), of `rows` rows in all."""
    (n, r, columns), here = parts.shape, place()
    most = -(-rows // here.world)  # of a rank; the last ones may have fewer
    matrices = gathered(F.pad(parts, (0, 0, 0, most - r))).reshape(n, -1, columns)[:, :rows]
    even = F.pad(matrices, (0, 0, 0, 0, 0, -n % here.world))
    return gathered(orthogonalise(share(even)))[:n, here.rank * most :][:, :r]
