"""Base classes and types of the configuration's sections."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """Keys of one part of the configuration: unknown ones are refused, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's true and false are no numbers, though Python takes them for 1 and 0."""
        if isinstance(value, bool) and "bool" not in str(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("expected a number or a text, not true or false")
        return value


class ModelSection(Section):
    """Parameters of one model, under its name.

    section : that name, for messages. implementation : `module:Class` of a model of this package, imported when it
    is used; empty for a section whose model's own package registers it.
    """

    section: ClassVar[str] = ""
    implementation: ClassVar[str] = ""
