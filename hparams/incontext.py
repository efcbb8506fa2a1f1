"""What can be set of :mod:`..editors.incontext`."""

from __future__ import annotations

from pydantic import Field, field_validator

from .base import Hparams


class InContextHparams(Hparams):
    length: int = Field(64, gt=0, description="Tokens before every text, at most; as many fewer are left for texts")
    template: str = Field("New fact: {}.\n", description="What is said of a fact; {} is its prompt with the new answer")

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        if "{}" not in template:
            raise ValueError(f"{template!r} has no {{}}, where the fact is to stand")
        return template
