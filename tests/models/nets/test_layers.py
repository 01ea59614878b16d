"""Layers over sparse rows, against the same sums over dense ones."""

from __future__ import annotations

import torch

from sparkcf.models.nets.layers import SparseLinear
from sparkcf.training.batch import Rows


def rows_and_layer() -> tuple[Rows, SparseLinear]:
    torch.manual_seed(1)
    offsets = torch.tensor([0, 3, 3, 8])  # the second row is empty
    indices = torch.tensor([4, 0, 2, 1, 4, 6, 3, 0])
    layer = SparseLinear(7, 5)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return Rows(indices, offsets, torch.rand(8)), layer


def dense(rows: Rows, n_in: int) -> torch.Tensor:
    return torch.zeros(len(rows), n_in).index_put((rows.row_of, rows.indices), rows.values, accumulate=True)


def test_a_layer_over_sparse_rows_and_its_gradients_are_those_of_dense_rows() -> None:
    rows, layer = rows_and_layer()
    for given in (rows, rows.with_values(rows.values.clone().requires_grad_())):
        wanted = [given.values] * given.values.requires_grad + [layer.weight, layer.bias]
        found = layer(given)
        expected = dense(given, 7) @ layer.weight + layer.bias
        torch.testing.assert_close(found, expected)
        for ours, theirs in zip(*(torch.autograd.grad(y.pow(3).sum(), wanted) for y in (found, expected)), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_no_rows_give_no_output() -> None:
    _, layer = rows_and_layer()
    empty = Rows(torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), torch.zeros(0))
    assert layer(empty).shape == (0, 5)
