"""What every section of the configuration is made of."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """Keys of one part of the configuration: unknown ones are refused, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelSection(Section):
    """Parameters of one model, under its name.

    section : that name, for messages. implementation : `module:Class` of a model of this package, imported when it
    is used; empty for a section whose model's own package registers it.
    """

    section: ClassVar[str] = ""
    implementation: ClassVar[str] = ""
