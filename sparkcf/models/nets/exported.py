"""Users' encoders of the autoencoders as TorchScript modules, for services that run torch and not sparkcf.

    module(indices, offsets, values) -> vectors (B, width), scores (B, n_items)      compressed rows, as `Rows` has them
    module.dense(x)                  -> the same                                     x (B, n_items)

Column i of a row is the item of index i. Scores of items that the run does not know are -inf. The modules repeat what
the nets compute when they serve, in the part of Python that TorchScript takes: without `Rows`.
"""

# No `from __future__ import annotations`: TorchScript reads the annotations of the attributes.
import io
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparkcf.models.nets.bivae import BiVAE
from sparkcf.models.nets.encoders import DenseEncoder, MLPEncoder
from sparkcf.models.nets.layers import SparseLinear
from sparkcf.models.nets.macridvae import MacridVAE
from sparkcf.models.nets.multvae import MultVAE


class KnownItems(NamedTuple):
    """What the scorer of a run knows of the items, whose indices are below m.

    An encoder has columns for the items of the training, which may be more, or fewer where items were folded in.

    vectors : float32 (m, width).
    known : bool (m,).
    """

    vectors: Any
    known: Any


class ExportedEncoder:
    """A user encoder that can be written, and called with arrays."""

    def __init__(self, module: torch.jit.ScriptModule, n_items: int) -> None:
        self.n_items = n_items
        self._module = module

    def write(self, path: Path) -> None:
        """Write the module as a TorchScript file."""
        buffer = io.BytesIO()
        torch.jit.save(self._module, buffer)
        path.write_bytes(buffer.getvalue())

    def read_back(self, path: Path) -> "ExportedEncoder":
        """The encoder of the file that `write` has just written. No other file is ever loaded."""
        return ExportedEncoder(torch.jit.load(io.BytesIO(path.read_bytes()), map_location="cpu"), self.n_items)

    def __call__(self, indptr: Any, indices: Any, values: Any) -> tuple[Any, Any]:
        """Vectors float32 (n, width) and scores float32 (n, n_items) of compressed rows."""
        with torch.inference_mode():
            rows = [torch.from_numpy(np.asarray(a, kind)) for a, kind in ((indices, np.int64), (indptr, np.int64))]
            found = self._module(*rows, torch.from_numpy(np.asarray(values, np.float32)))
        return tuple(tensor.numpy() for tensor in found)

    def of_dense(self, x: Any) -> tuple[Any, Any]:
        """As a call, of rows as an array float32 (n, n_items)."""
        with torch.inference_mode():
            found = self._module.dense(torch.from_numpy(np.asarray(x, np.float32)))
        return tuple(tensor.numpy() for tensor in found)


def exported(net: nn.Module, items: KnownItems) -> ExportedEncoder:
    """The user encoder of a net on the CPU, which it leaves in the mode of evaluation."""
    n_items, module = _module_of(net.eval(), items)
    with warnings.catch_warnings():  # torch prefers torch.export, whose files need Python to be read
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=DeprecationWarning)
        return ExportedEncoder(torch.jit.script(module.eval().requires_grad_(False)), n_items)


def _module_of(net: nn.Module, items: KnownItems) -> tuple[int, nn.Module]:
    if isinstance(net, MultVAE):
        n_items = net.output.out_features
        return n_items, LinearDecoderEncoder(net, _known(items, n_items))
    if isinstance(net, MacridVAE):
        n_items = len(net.items)
        return n_items, ConceptEncoder(net, _known(items, n_items))
    assert isinstance(net, BiVAE)
    n_items = len(net.user.encoder.input.weight)
    vectors = torch.zeros(n_items, items.vectors.shape[1])
    vectors[: len(items.vectors)] = torch.from_numpy(np.array(items.vectors[:n_items]))
    return n_items, InnerProductEncoder(net, vectors, _known(items, n_items))


def _known(items: KnownItems, n_items: int) -> Tensor:
    known = torch.zeros(n_items, dtype=torch.bool)
    known[: len(items.known)] = torch.from_numpy(np.array(items.known[:n_items]))
    return known


def unit_values(offsets: Tensor, values: Tensor) -> Tensor:
    """The values divided by their rows' L2 norms."""
    row_of = torch.repeat_interleave(torch.arange(offsets.size(0) - 1), offsets.diff())
    squares = torch.zeros(offsets.size(0) - 1).index_add_(0, row_of, values * values)
    return values / squares.clamp_min(1e-24).sqrt()[row_of]


class SparseInput(nn.Module):
    """The first layer of an encoder."""

    def __init__(self, layer: SparseLinear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, indices: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
        if offsets.size(0) == 1:  # embedding_bag refuses an empty batch
            return self.weight[:0] + self.bias
        summed = F.embedding_bag(
            indices, self.weight, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
        )
        return summed + self.bias


class PlainMLP(nn.Module):
    """As `MLPEncoder`."""

    def __init__(self, encoder: MLPEncoder) -> None:
        super().__init__()
        self.input, self.layers = SparseInput(encoder.input), encoder.layers

    def forward(self, indices: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
        h = self.input(indices, offsets, values)
        for layer in self.layers:
            h = layer(torch.tanh(h))
        return h


class PlainDense(nn.Module):
    """As `DenseEncoder`."""

    def __init__(self, encoder: DenseEncoder) -> None:
        super().__init__()
        self.input, self.layers, self.output = SparseInput(encoder.input), encoder.layers, encoder.output
        self.first_norm, self.norms = encoder.norms[0], nn.ModuleList(list(encoder.norms)[1:])

    def forward(self, indices: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
        h = self.first_norm(F.silu(self.input(indices, offsets, values)))
        before = h
        for layer, norm in zip(self.layers, self.norms):  # noqa: B905 (TorchScript knows no `strict`)
            h = norm(F.silu(layer(h) + before))
            before = before + h
        return self.output(h)


def _plain(encoder: nn.Module) -> nn.Module:
    return PlainDense(encoder) if isinstance(encoder, DenseEncoder) else PlainMLP(encoder)  # type: ignore[arg-type]


class RowEncoder(nn.Module):
    """What the encoders share. `known` : bool (n_items,)."""

    known: Tensor

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.register_buffer("known", known)

    @torch.jit.export
    def dense(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From rows x (B, n_items)."""
        places = x.nonzero()
        ends = (x != 0).sum(dim=1).cumsum(0)
        offsets = torch.cat([ends.new_zeros(1), ends])
        return self.forward(places[:, 1], offsets, x[places[:, 0], places[:, 1]])

    def forward(self, indices: Tensor, offsets: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def masked(self, scores: Tensor) -> Tensor:
        return scores.masked_fill(~self.known, float("-inf"))


class LinearDecoderEncoder(RowEncoder):
    """Of Mult-VAE, Mult-DAE and RecVAE: a score is vector · output weight + bias."""

    def __init__(self, net: MultVAE, known: Tensor) -> None:
        super().__init__(known)
        self.encoder, self.decoder, self.output = _plain(net.encoder), net.decoder, net.output
        self.variational = net.variational

    def forward(self, indices: Tensor, offsets: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(indices, offsets, unit_values(offsets, values))
        z = h.chunk(2, dim=1)[0] if self.variational else torch.tanh(h)
        for layer in self.decoder:
            z = torch.tanh(layer(z))
        return z, self.masked(self.output(z))


class InnerProductEncoder(RowEncoder):
    """Of BiVAE: a score is vector · item vector. `item_vectors` : (n_items, latent_dim)."""

    item_vectors: Tensor

    def __init__(self, net: BiVAE, item_vectors: Tensor, known: Tensor) -> None:
        super().__init__(known)
        self.encoder, self.binary = _plain(net.user.encoder), net.user.settings.binary
        self.register_buffer("item_vectors", item_vectors)

    def forward(self, indices: Tensor, offsets: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        given = torch.ones_like(values) if self.binary else values
        mean = self.encoder(indices, offsets, given).chunk(2, dim=1)[0]
        return mean, self.masked(mean @ self.item_vectors.t())


class ConceptEncoder(RowEncoder):
    """Of MacridVAE: vectors of K concepts side by side; a score is log sum_k c_ik exp(cos(z_k, h_i) / tau)."""

    items: Tensor
    assigned: Tensor

    def __init__(self, net: MacridVAE, known: Tensor) -> None:
        super().__init__(known)
        self.encoder, self.temperature = _plain(net.encoder), net.temperature
        with torch.no_grad():
            self.register_buffer("items", F.normalize(net.items, dim=1))
            self.register_buffer("assigned", net.assignments())

    def forward(self, indices: Tensor, offsets: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        means: list[Tensor] = []
        scores = torch.zeros(offsets.size(0) - 1, self.items.size(0))
        for concept in range(self.assigned.size(1)):
            of_concept = self.assigned[:, concept]
            h = self.encoder(indices, offsets, unit_values(offsets, values * of_concept[indices]))
            mean = F.normalize(h.chunk(2, dim=1)[0], dim=1)
            means.append(mean)
            scores = scores + torch.exp(mean @ self.items.t() / self.temperature) * of_concept
        return torch.cat(means, dim=1), self.masked(scores.log())
