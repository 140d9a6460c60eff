"""What all sections of a recipe have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are frozen, defaults are checked too."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_value(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads off and no as false, and false would pass for the number 0: `gigpo_similarity: off` would
        # call all states the same.
        if (
            isinstance(value, bool)
            and info.field_name
            and cls.model_fields[info.field_name].annotation is not bool
        ):
            raise ValueError(
                "not a switch (on, off, yes, no, true, false); null turns off what can be turned off"
            )
        return value
