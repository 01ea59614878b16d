"""Re-ranking of lists: diversity, calibration, caps, boosts, freshness, exploration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sparkcf.config.section import NonNegative, Positive, Section, Share

By = Annotated[str, Field(min_length=1)]


class ExcludeRule(Section):
    by: By  # categories, or the name of an attribute of items that is a text
    values: Annotated[tuple[str, ...], Field(min_length=1)]  # items with one of these are never listed


class CapRule(Section):
    by: By  # categories, or the name of an attribute of items that is a text
    most: Positive  # items of the same value in a list


class BoostRule(Section):
    by: By  # categories, or the name of an attribute of items that is a text
    value: str  # items with this value
    multiply: NonNegative = 1.0  # their scores, after these are scaled to 0..1 within the user
    add: Annotated[float, Field(ge=-1, le=1)] = 0.0  # to them, after that


class RerankConfig(Section):
    """The rules apply in the order of the keys; see docs/reranking.md."""

    exclude: tuple[ExcludeRule, ...] = ()
    factor: Annotated[int, Field(ge=1, le=100)] = 5  # candidates for each position of a list
    boosts: tuple[BoostRule, ...] = ()
    half_life_days: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = (
        None  # of an item's score; None: no decay
    )
    # Since when an item ages: its first_event, or the name of an attribute that is a day or a time (ISO 8601, UTC), or
    # of a number of seconds since 1970. Items without one do not age.
    fresh_from: By = "first_event"
    diversity: Share = 0.0  # weight of the cosine with the list's most similar item; 0: none
    similarity: Literal["vectors", "categories"] = "vectors"  # of items: by the model's item vectors, or by categories
    calibration: Share = 0.0  # weight of the divergence between the categories of the list and of the user's items
    caps: tuple[CapRule, ...] = ()
    exploration: Share = 0.0  # share of positions given to candidates drawn at random, by user and day

    @model_validator(mode="after")
    def _consistent(self) -> RerankConfig:
        if self.diversity + self.calibration > 1:
            raise ValueError(
                f"diversity={self.diversity:g} and calibration={self.calibration:g} leave no weight to scores: "
                "their sum is at most 1"
            )
        return self

    @property
    def active(self) -> bool:
        """Whether there is any rule."""
        return bool(
            self.exclude
            or self.boosts
            or self.half_life_days is not None
            or self.diversity
            or self.calibration
            or self.caps
            or self.exploration
        )

    def named(self) -> list[tuple[str, str]]:
        """Key and name of each attribute that a rule of texts reads; also `categories`."""
        named = {
            "exclude": [rule.by for rule in self.exclude],
            "boosts": [rule.by for rule in self.boosts],
            "caps": [rule.by for rule in self.caps],
        }
        found = [(f"rerank.{key}[{at}].by", by) for key, listed in named.items() for at, by in enumerate(listed)]
        reads_categories = self.calibration > 0 or (self.diversity > 0 and self.similarity == "categories")
        return [*found, *([("rerank", "categories")] if reads_categories else [])]
