"""The sections of all models: `SECTIONS`. Each family of models has a file; popularity and the blend are here."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from sparkcf.config.factorization import ALSConfig, HALSConfig, MPMAConfig
from sparkcf.config.fm import FMConfig
from sparkcf.config.linear import EASEConfig, MRFConfig
from sparkcf.config.nets import BiVAEConfig, DisenGCNConfig, MacridVAEConfig, MultDAEConfig, MultVAEConfig, NCFConfig
from sparkcf.config.section import ModelSection, NonNegative, Positive, Section


class PopularityConfig(ModelSection):
    """The items with the most users, the same list for all."""

    section: ClassVar[str] = "popularity"
    implementation: ClassVar[str] = "sparkcf.models.popularity:Popularity"

    by: Literal["users", "weight"] = "users"  # users: distinct users; weight: sum of the pairs' weights


class BlendMember(Section):
    """A model whose lists a blend merges."""

    model: str  # a model that reads positives and no attributes
    params: dict[str, Any] = Field(default_factory=dict)  # its parameters, without its name before them

    @property
    def section(self) -> ModelSection:
        """The member's parameters. Raises ValueError for an unknown model, or parameters that it does not take."""
        if self.model not in SECTIONS or self.model == BlendConfig.section:
            known = ", ".join(name for name in SECTIONS if name != BlendConfig.section)
            raise ValueError(f"model={self.model!r}: a blend merges the lists of {known}")
        return SECTIONS[self.model].model_validate(self.params)


class BlendConfig(ModelSection):
    """Reciprocal rank fusion of other models' lists; see `sparkcf/models/blend.py`."""

    section: ClassVar[str] = "blend"
    implementation: ClassVar[str] = "sparkcf.models.blend:Blend"

    members: Annotated[tuple[BlendMember, ...], Field(min_length=2)] = (
        BlendMember(model="als"),
        BlendMember(model="ease"),
    )
    # Of the members, in their order. None: learned on a validation part, for which every member is fitted once more
    weights: tuple[NonNegative, ...] | None = None
    rank_constant: Annotated[float, Field(gt=0, allow_inf_nan=False)] = (
        60.0  # c: the larger, the less the first ranks count
    )
    depth: Positive = 1_000  # best items of each member that count
    validation_users: Positive = 5_000  # most users whose items are held out to learn the weights
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of their items that is held out

    @model_validator(mode="after")
    def _consistent(self) -> BlendConfig:
        for at, member in enumerate(self.members):
            try:
                member.section  # noqa: B018 (checks the parameters)
            except ValueError as error:
                raise ValueError(f"members[{at}]: {' '.join(str(error).split())}") from None
        if self.weights is not None and (len(self.weights) != len(self.members) or not sum(self.weights)):
            raise ValueError(
                f"weights={list(self.weights)} of {len(self.members)} members: give one for each, not all of them 0"
            )
        return self


SECTIONS: dict[str, type[ModelSection]] = {
    params.section: params
    for params in (
        ALSConfig,
        HALSConfig,
        FMConfig,
        MultVAEConfig,
        MultDAEConfig,
        MacridVAEConfig,
        BiVAEConfig,
        NCFConfig,
        DisenGCNConfig,
        MPMAConfig,
        EASEConfig,
        MRFConfig,
        PopularityConfig,
        BlendConfig,
    )
}
