"""Families beyond GPT-2 and Llama: edits side by side are edits alone, for every method, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import methods
import pytest
import tiny
import torch
from transformers import PreTrainedTokenizerBase

from loredit import editors
from loredit.data import Fact
from loredit.editors import TrainedEditor
from loredit.evaluation.scoring import evaluate

# Windows and positions of their own by layer, norms behind the MLP; an MLP beside attention; all maps fused; ALiBi.
FAMILIES = ("gemma3_text", "falcon", "phi3", "bloom")
CASES = [("gemma3_text", name) for name in methods.METHODS] + [(family, "lora") for family in FAMILIES[1:]]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_trained_together_is_trained_alone(
    family: str, method: str, facts: Sequence[Fact], tokenizer: PreTrainedTokenizerBase
) -> None:
    some = facts[:3]
    if not issubclass(editors.find(method), TrainedEditor):  # beyond the subject random weights carry nothing
        some = [
            fact.model_copy(update={"prompt": fact.prompt[: fact.prompt.index(fact.subject) + len(fact.subject)]})
            for fact in some
            if fact.subject
        ]
    near = tiny.close(family)
    editor = methods.editor(method, tiny.model(family), tokenizer, steps=6)
    together = editor.edit_each(some)
    for e, fact in enumerate(some):
        alone = editor.edit_each([fact])
        assert together.outcomes[e].error is alone.outcomes[0].error is None
        assert together.outcomes[e].loss == methods.about(alone.outcomes[0].loss, near["rtol"])
        (a,), (b,) = evaluate(together[e], fluency=False), evaluate(alone, fluency=False)
        seen = [
            torch.tensor(
                [answer.log_prob for probe in one.probes for answer in probe.edited.answers], dtype=torch.float64
            )
            for one in (a, b)
        ]
        torch.testing.assert_close(seen[0], seen[1], rtol=100 * near["rtol"], atol=100 * near["atol"])
        assert any(probe.base != probe.edited for probe in a.probes), "or the equality says nothing"
