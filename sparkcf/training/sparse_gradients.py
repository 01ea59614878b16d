"""Sparse gradients of embedding tables: a step exchanges and updates only the rows of its batch.

    each rank's rows ──gathered──▶ mean over ranks, by row ──▶ these rows of the table and of its moments

Time and memory of a step, apart from the table and its moments, do not depend on the length of the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.adam import adam

from sparkcf.training.group import Group


@torch.no_grad()
def average(tables: Sequence[nn.Parameter], group: Group) -> None:
    """Average the sparse gradients of tables over the ranks, which DDP leaves out. They then name each row once."""
    for table in tables:
        assert table.grad is not None
        gradient = table.grad.coalesce()
        if group.size > 1:
            rows, values = group.gather_rows(gradient.indices()[0], gradient.values())
            summed = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=False).coalesce()
            gradient = summed / group.size
        table.grad = gradient


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """`torch.nn.utils.clip_grad_norm_`, for gradients of which some are sparse (coalesced)."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    numbers = [gradient.values() if gradient.is_sparse else gradient for gradient in gradients]
    factor = (max_norm / (nn.utils.get_total_norm(numbers) + 1e-6)).clamp(max=1.0)
    for each in numbers:
        each.mul_(factor)


class LazyAdam(Adam):
    """Adam that, where a gradient is sparse, moves only the rows that the gradient has.

    The moments and the weight decay of the other rows rest too. The moments are corrected by the number of steps of the
    table, not of the row, as in `torch.optim.SparseAdam`. If a gradient has all rows, a step is that of Adam.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        sparse: list[tuple[dict[str, Any], nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None and table.grad.is_sparse:
                    sparse.append((group, table, table.grad))
                    table.grad = None  # Adam skips parameters without a gradient
        loss = super().step(closure)
        for group, table, gradient in sparse:
            self._step_rows(group, table, gradient)
            table.grad = gradient
        return loss

    def _step_rows(self, group: dict[str, Any], table: nn.Parameter, gradient: Tensor) -> None:
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros((), device=table.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        at, (beta1, beta2) = gradient.indices()[0], group["betas"]
        tables = (table, state["exp_avg"], state["exp_avg_sq"])
        rows, mean, square = (each.index_select(0, at) for each in tables)
        adam(
            *([rows], [gradient.values()], [mean], [square], [], [state["step"]]),
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for each, changed in zip(tables, (rows, mean, square), strict=True):
            each.index_copy_(0, at, changed)
