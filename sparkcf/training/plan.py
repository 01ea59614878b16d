"""The plan of a fit by a gang: what every worker is sent beside its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Config = TypeVar("Config")


@dataclass(frozen=True)
class Plan(Generic[Config]):
    """Parameters of a fit, sent to every worker.

    config : the model's section of the configuration.
    threads : of each worker.
    """

    config: Config
    n_users: int
    n_items: int
    seed: int
    threads: int

    @property
    def sizes(self) -> tuple[int, int]:
        return self.n_users, self.n_items
