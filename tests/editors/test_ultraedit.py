"""UltraEdit against its formula, one token and one feature at a time."""

from __future__ import annotations

import methods
import numpy as np
import tiny
import torch
from torch import Tensor, nn

from loredit import editors
from loredit.data import Fact
from loredit.editors.ultraedit import Normalised
from loredit.engine.model.keys import gradients_at
from loredit.engine.model.sites import Site, sites
from loredit.engine.training.turns import UNCHANGED


def slow_gradients(model: nn.Module, site: Site, rows: list) -> tuple[Tensor, Tensor]:
    """(K, I) and (K, O), one text at a time, by a zero that is added to what the site gives."""
    inputs, gradients = [], []
    for row in rows:
        seen: dict[str, Tensor] = {}

        def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor, seen: dict[str, Tensor] = seen) -> Tensor:
            seen["x"], seen["zero"] = args[0].detach(), torch.zeros_like(output, requires_grad=True)
            return output + seen["zero"]

        handle = model.get_submodule(site.name).register_forward_hook(add)
        logits = model(torch.tensor([row.ids])).logits[0, row.start - 1 : -1]
        handle.remove()
        nn.functional.cross_entropy(logits, torch.tensor(row.wanted)).backward(inputs=[seen["zero"]])
        inputs.append(seen["x"][0, row.start - 1 : -1])
        gradients.append(seen["zero"].grad[0, row.start - 1 : -1])
    return torch.cat(inputs), torch.cat(gradients)


def test_gradients_are_those_of_each_text_alone(model, tokenizer, facts, monkeypatch):
    editor = methods.editor("ultraedit", model, tokenizer, contexts=0)
    rows = [row for fact in facts for row in editor.lesson([fact]).answers]
    places = sites(model, ["mlp_down", "qkv"], [0, 2])
    for budget in (1, 10_000):
        monkeypatch.setattr(
            "loredit.engine.model.keys._KEPT_TOKENS", type("B", (), {"on": lambda self, device, n=budget: n})()
        )
        found = gradients_at(model, places, rows)
        assert found.rows.tolist() == [i for i, row in enumerate(rows) for _ in row.wanted]
        for site, x, g in zip(places, found.inputs, found.gradients, strict=True):
            own_x, own_g = slow_gradients(model, site, rows)
            torch.testing.assert_close(x, own_x, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(g, own_g, rtol=1e-8, atol=1e-11)
    assert all(p.grad is None for p in model.parameters())


def test_running_statistics_are_those_of_all_predictions_at_once():
    torch.manual_seed(0)
    branch = Normalised(1, Site("s", 0, "mlp_down", 3, 2)).double()
    seen: list[list[float]] = []
    for k in (1, 4, 1, 7):
        z = torch.randn(k, 5).double() * torch.tensor([1.0, 5, 0.1, 2, 0]).double() + 3
        normalised = branch.observe(z)
        seen += z.tolist()
        for feature in range(5):
            column = [row[feature] for row in seen]
            mean = sum(column) / len(column)
            variance = sum((x - mean) ** 2 for x in column) / max(len(column) - 1, 1)
            expected = [(x - mean) / variance**0.5 if variance > 1e-20 else 0.0 for x in z[:, feature].tolist()]
            np.testing.assert_allclose(normalised[:, feature], expected, rtol=1e-8, atol=1e-9)


def test_a_change_is_the_dense_solve(model, tokenizer, facts):
    editor = methods.editor("ultraedit", model, tokenizer, batch_size=2)
    edits = editor.edit(facts[:4])  # two turns, the second with the first in place
    before = editor.edit(facts[:2])
    rows = [row for fact in facts[2:4] for row in editor.lesson([fact]).answers]
    first = [row for fact in facts[:2] for row in editor.lesson([fact]).answers]
    for (site, branch), (_, old) in zip(edits.patch.items(), before.patch.items(), strict=True):
        past = torch.cat(slow_gradients(model, site, first), 1)
        with before.on([0] if len(rows) == 1 else 0):
            h, g = slow_gradients(model, site, rows)
        every = torch.cat([past, torch.cat([h, g], 1)])
        z = (torch.cat([h, g], 1) - every.mean(0)) / every.std(0)
        v = -editor.hparams.lr * z[:, : site.inputs].square().sum(1, keepdim=True) * z[:, site.inputs :]
        h, v = h.detach().numpy(), v.detach().numpy()
        delta = np.linalg.solve(h.T @ h + np.eye(site.inputs), h.T @ v).T
        np.testing.assert_allclose((branch.delta(0) - old.delta(0)).detach(), delta, rtol=1e-6, atol=1e-9)
        assert int(branch.count) == len(every)
    assert edits.outcomes[0].steps == 2


def test_a_single_prediction_changes_nothing_and_says_so(tokenizer, model):
    class OneToken:
        """Encodes as the tokenizer does, an answer as one token."""

        def __init__(self) -> None:
            self.is_fast, self.eos_token_id = True, tokenizer.eos_token_id

        def __call__(self, text: str) -> dict[str, list[int]]:
            head, _, answer = text.partition(" = ")
            ids = tokenizer(head)["input_ids"]
            return {"input_ids": [*ids, 42] if answer or text.endswith("= x") else ids}

    editor = methods.editor("ultraedit", model, tokenizer, contexts=0)
    editor.encoder.tokenizer = OneToken()
    fact, other = (Fact(case_id=name, prompt=f"{name}", target_new="= x") for name in ("Ada", "Bob"))
    (alone,) = editor.edit_each([fact]).outcomes
    assert (alone.error, alone.notes) == (None, (UNCHANGED,))
    first, second = editor.edit_stream([fact, other])
    assert first.outcomes[0].notes == (UNCHANGED,)
    assert second.patch.branches[0].b.any(), "the second has the first to be measured by"
    together = editor.edit([fact, other])
    assert not together.outcomes[0].notes


def test_needs_no_subject_and_no_statistics(model, tokenizer, facts, monkeypatch):
    monkeypatch.setattr("loredit.engine.training.solving.second_moments", None)
    edits = methods.editor("ultraedit", model, tokenizer).edit_each(facts[4:])
    assert facts[4].subject is None
    assert edits.outcomes[0].error is None


def test_published_values_are_those_of_the_authors():
    h = editors.settings("ultraedit", "gptj")
    assert (h.sites, h.layers, h.lr, h.batch_size) == (["mlp_down"], [*range(18, 27)], 1e-6, 100)


def test_an_answer_that_is_no_number_is_that_facts_error(tokenizer, facts):
    model = tiny.model("llama")
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer("~")["input_ids"]] = torch.nan
    sick = Fact(case_id="sick", prompt="A tilde ~ is", target_new="poison")
    editor = methods.editor("ultraedit", model, tokenizer)
    edits = editor.edit([facts[0], sick, facts[1]])
    assert edits.outcomes[0].lost == {1: "the loss is nan, so nothing can be made of the fact"}
    torch.testing.assert_close(
        edits.patch.delta_weights(0), editor.edit([facts[0], facts[1]]).patch.delta_weights(0), rtol=1e-8, atol=1e-10
    )
