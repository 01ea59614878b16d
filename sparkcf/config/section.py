"""Base classes and types of the configuration's sections."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """Keys of one part of the configuration: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for numbers, which Python would read as 1 and 0."""
        if isinstance(value, bool) and "bool" not in str(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("expected a number or a text, not true or false")
        return value


class ModelSection(Section):
    """Parameters of one model.

    section : the model's name, which is the section's key.
    implementation : `module:Class` of a model of this package, imported when it is used; empty for other packages.
    """

    section: ClassVar[str] = ""
    implementation: ClassVar[str] = ""
