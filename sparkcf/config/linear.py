"""Parameters of the linear models of items: EASE and MRF."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from sparkcf.config.section import ModelSection, Positive


class EASEConfig(ModelSection):
    """Exact linear model of items; see `sparkcf/models/ease.py`."""

    section: ClassVar[str] = "ease"
    implementation: ClassVar[str] = "sparkcf.models.ease:EASE"

    regularization: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 500.0  # lambda
    user_exponent: Annotated[float, Field(ge=0, le=1)] = 0.0  # b: a user's weight is n^-b: heavy users less
    item_exponent: Annotated[float, Field(ge=0, le=1)] = 0.0  # a: scales B_ij by (n_i / n_j)^a: popular items less
    denoising: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of a row that a denoising autoencoder drops
    max_items: Positive = 20_000  # more are an error: the driver holds 12 bytes for every pair of items
    max_history: Positive = 5_000  # most pairs of a user; of more, those with the smallest hash


class MRFConfig(ModelSection):
    """Sparse linear model of items; see `sparkcf/models/mrf/fit.py`."""

    section: ClassVar[str] = "mrf"
    implementation: ClassVar[str] = "sparkcf.models.mrf.fit:MRF"

    regularization: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 20.0  # lambda
    max_neighbours: Annotated[int, Field(ge=1, le=4000)] = 300  # items that an item's scores come from, at most
    # Pairs of items whose correlation is smaller count as 0. It decides what the sparse matrix of pairs holds.
    min_correlation: Annotated[float, Field(ge=0, lt=1)] = 0.02
    centred: bool = False  # correlations around the items' means (Pearson's); false: around 0 (cosines)
    scale_exponent: Annotated[float, Field(ge=0, le=1)] = 0.0  # variances become their power 1 - this
    user_exponent: Annotated[float, Field(ge=0, le=1)] = 0.3  # b: a user's weight is n^-b: heavy users less
    item_exponent: Annotated[float, Field(ge=0, le=1)] = 0.35  # a: scales B_ij by (n_i / n_j)^a: popular items less
    denoising: Annotated[float, Field(ge=0, lt=1)] = 0.3  # share of a row that a denoising autoencoder drops
    max_entries: Positive = 500_000_000  # pairs above min_correlation; more are an error: 8 bytes each on the driver
    max_history: Positive = 5_000  # most pairs of a user; of more, those with the smallest hash
