"""One edit that carries many facts: all of them in one training, or one after another on the same patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.facts import Fact
from ._training import lesson, train
from .base import Editor, Edits, Progress


def together(editor: Editor[Any], facts: Sequence[Fact], before: Edits | None, progress: Progress | None) -> Edits:
    """One edit that carries all facts, going on from ``before`` if there is one."""
    patch = editor.fresh([editor.seed_for(facts) if before is None else int(before.patch.seeds[0])])
    if before is not None:
        patch = patch.rebuilt(patch.tensors() | before.patch.take([0]).lasting())
        patch.steps.zero_()
    patch, outcomes = train(editor, patch, [lesson(editor, facts)], progress)
    carried = (*(before.facts[0] if before else ()), *facts)
    return Edits(editor, patch, (carried,), tuple(outcomes))
