"""Seconds a fact of EasyEdit's ROME, MEMIT and AlphaEdit, and of ours, one by one and side by side.

    python benchmarks/closed_forms.py CHECKOUT --data ZsRE-test-1001.json

Both change the same model with the same settings (ours: the preset's), contexts and second moments, in float32, which
is what EasyEdit computes in; statistics and contexts are made before. EasyEdit edits the first facts one after another,
as it does however many there are; ours edits them one by one, 8 and 64 side by side. Both train values for ``--steps``
steps, neither stops early. ``CHECKOUT`` is zjunlp/EasyEdit, of which nothing but these methods is imported.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import loredit
from loredit.data import Fact

LLAMA = {
    "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
    "layer_module_tmp": "model.layers.{}",
    "mlp_module_tmp": "model.layers.{}.mlp",
    "ln_f_module": "model.norm",
    "lm_head_module": "model.embed_tokens",  # tied: a model names its parameters once
}


def easyedit(checkout: Path) -> Callable[[str], Any]:
    """Imports a module of EasyEdit's by its name, and nothing else of EasyEdit: its packages are empty."""
    for name in ("easyeditor", "easyeditor.models", "easyeditor.util"):
        package = types.ModuleType(name)
        package.__path__ = [str(checkout.joinpath(*name.split(".")))]
        sys.modules[name] = package
    return lambda name: importlib.import_module(f"easyeditor.{name}")


def settings(editor: Any, names: Mapping[str, str], layers: Sequence[int]) -> SimpleNamespace:
    """Theirs that mean what an editor's mean. The last of their steps takes none."""
    h = editor.hparams
    return SimpleNamespace(
        **names,
        layers=[*layers],
        fact_token="subject_last",
        v_num_grad_steps=h.steps + 1,
        v_lr=h.lr,
        v_weight_decay=h.weight_decay,
        v_loss_layer=editor.model.config.num_hidden_layers - 1,
        clamp_norm_factor=h.clamp,
        kl_factor=h.kl_weight,
        mom2_adjustment=True,
        mom2_dataset="",
        mom2_n_samples=0,
        mom2_dtype="float32",
        mom2_update_weight=getattr(h, "mom2_update_weight", 0),
        L2=getattr(h, "ridge", 0),
        context_template_length_params=[],
        device=str(editor.model.device),
    )


def request(fact: Fact) -> dict[str, Any]:
    return {"case_id": fact.case_id, "prompt": fact.prompt, "subject": fact.subject, "target_new": fact.target_new}


def theirs(load: Callable[[str], Any], name: str, editor: Any) -> Callable[[Fact], None]:
    """Edits one fact as EasyEdit does; the model is as before."""
    asked = settings(editor, LLAMA, [site.layer for site in editor.sites])
    inverse = {site: torch.linalg.inv(c).float() for site, c in editor.moments.items()}
    bare = [f"{text} {{}}" for text in editor.contexts]
    if name == "rome":
        main = load("models.rome.rome_main")
        load("models.rome.compute_u").get_inv_cov = lambda model, tok, site, *_, **__: inverse[site]
        main.CONTEXT_TEMPLATES_CACHE = ["{}", *bare]
        return lambda fact: main.execute_rome(editor.model, editor.tokenizer, request(fact), asked)
    main = load({"memit": "models.memit.memit_main", "alphaedit": "models.alphaedit.AlphaEdit_main"}[name])
    main.CONTEXT_TEMPLATES_CACHE = [["{}"], bare]
    if name == "memit":
        main.get_cov = lambda model, tok, site, *_, **__: editor.moments[site].float()
        return lambda fact: main.execute_memit(editor.model, editor.tokenizer, [request(fact)], asked)
    main.P = torch.stack([(space @ space.T).float() for space, _ in editor.spaces.values()])
    main.cache_c = torch.zeros_like(main.P)
    return lambda fact: main.execute_AlphaEdit(editor.model, editor.tokenizer, [request(fact)], asked)


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    with redirect_stdout(StringIO()):
        run()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--editors", nargs="+", default=["rome", "memit", "alphaedit"])
    parser.add_argument("--facts", type=int, default=64, help="that ours edits side by side")
    parser.add_argument("--theirs", type=int, default=2, help="facts that EasyEdit edits")
    parser.add_argument("--steps", type=int, default=5, help="of a value's training; published are 20 to 25")
    asked = parser.parse_args()
    load = easyedit(asked.checkout)
    facts = loredit.load_facts(asked.data).facts[: asked.facts]
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    ways = ["", "EasyEdit", "ours, one by one", "8 side by side", f"{asked.facts} side by side", "times as fast"]
    print(f"| {' | '.join(ways)} |\n|{'---|' * len(ways)}")
    for name in asked.editors:
        editor = loredit.editor(name, "smollm2", dtype="float32", stop_at=None, steps=asked.steps)
        editor.tokenizer.pad_token, editor.tokenizer.padding_side = editor.tokenizer.eos_token, "right"
        one = theirs(load, name, editor)
        seconds(lambda one=one: one(facts[0]))  # what is made once
        seconds(lambda editor=editor: editor.edit_each(facts[:1], progress=False))
        its = [seconds(lambda one=one, fact=fact: one(fact)) for fact in facts[: asked.theirs]]
        row = [sum(its) / len(its)]
        for n, of in ((1, facts[: asked.theirs]), (8, facts[:16]), (asked.facts, facts)):
            took = seconds(lambda editor=editor, of=of, n=n: editor.edit_each(of, edits_at_once=n, progress=False))
            row.append(took / len(of))
        print(f"| {name} | " + " | ".join(f"{x:.3f} s" for x in row) + f" | {row[0] / row[-1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
