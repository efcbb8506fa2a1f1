from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..util.alg_dict import ALG_DICT
from .batch_editor import BatchEditor
from .utils import restore


class BaseEditor:
    @classmethod
    def from_hparams(cls, hparams: Any) -> "BaseEditor":
        return cls(hparams)

    def __init__(self, hparams: Any) -> None:
        self.hparams, self.alg_name, self.apply_algo = hparams, hparams.alg_name, ALG_DICT[hparams.alg_name]
        if not any(family in hparams.model_name.lower() for family in ("gpt", "llama")):
            raise NotImplementedError
        self.model = AutoModelForCausalLM.from_pretrained(hparams.model_name, dtype=torch.float32).to(hparams.device)
        self.tok = AutoTokenizer.from_pretrained(hparams.model_name)
        self.tok.pad_token_id, self.tok.padding_side = self.tok.eos_token_id, "left"

    def edit(
        self, prompts: list[str], sequential_edit: bool = False, verbose: bool = True, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        assert self.hparams.batch_size == 1
        return self._edit(requests(prompts, **kwargs), 1, sequential_edit, keep_original_weight=False, train_ds=None)

    def batch_edit(
        self, prompts: list[str], sequential_edit: bool = False, verbose: bool = True, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        assert BatchEditor.is_batchable_method(self.alg_name)
        return self._edit(requests(prompts, **kwargs), self.hparams.batch_size, sequential_edit)

    def _edit(self, asked: list[dict[str, Any]], n: int, sequential: bool, **more: Any) -> tuple[Any, Any, Any]:
        metrics = [{"pre": quality(self.model, self.tok, request)} for request in asked]
        for begin in range(0, len(asked), n):
            chunk = asked[begin : begin + n]
            edited, weights_copy = self.apply_algo(
                self.model, self.tok, chunk, self.hparams, copy=False, return_orig_weights=True, **more
            )
            for i, request in enumerate(chunk):
                entry = metrics[begin + i]
                entry |= {"case_id": begin + i, "requested_rewrite": request}
                entry["post"] = quality(edited, self.tok, request)
                for group in request["locality"]:
                    before, after = (entry[phase]["locality"][f"{group}_output"] for phase in ("pre", "post"))
                    entry["post"]["locality"][f"{group}_acc"] = [
                        share(a, b) for a, b in zip(after, before, strict=True)
                    ]
            if not sequential:
                restore(self, edited, weights_copy)
        return metrics, edited, weights_copy


def requests(
    prompts: list[str],
    target_new: list[str],
    subject: list[str],
    rephrase_prompts: list[str],
    locality_inputs: dict[str, Any],
    portability_inputs: dict[str, Any],
) -> list[dict[str, Any]]:
    out = []
    for i, prompt in enumerate(prompts):
        groups = {
            kind: {
                group: {part: inputs[part][i] for part in ("prompt", "ground_truth")}
                for group, inputs in of_kind.items()
                if inputs["prompt"][i] is not None
            }
            for kind, of_kind in (("locality", locality_inputs), ("portability", portability_inputs))
        }
        own = {"prompt": prompt, "target_new": target_new[i], "subject": subject[i], "ground_truth": None}
        out.append(own | {"rephrase_prompt": rephrase_prompts[i], **groups})
    return out


def quality(model: Any, tok: Any, request: dict[str, Any]) -> dict[str, Any]:
    def accuracies(prompts: list[str], answers: list[str]) -> list[float]:
        return [share(*tokens(model, tok, *pair)) for pair in zip(prompts, answers, strict=True)]

    return {
        "rewrite_acc": accuracies([request["prompt"]], [request["target_new"]]),
        "rephrase_acc": accuracies([request["rephrase_prompt"]], [request["target_new"]]),
        "portability": {
            f"{g}_acc": accuracies(p["prompt"], p["ground_truth"]) for g, p in request["portability"].items()
        },
        "locality": {
            f"{g}_output": [tokens(model, tok, *pair)[0] for pair in zip(p["prompt"], p["ground_truth"], strict=True)]
            for g, p in request["locality"].items()
        },
    }


@torch.no_grad()
def tokens(model: Any, tok: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """What the model predicts at the places of the answer's tokens, and these tokens."""
    ids, start = tok(f"{prompt} {answer}")["input_ids"], len(tok(prompt)["input_ids"])
    return model(torch.tensor([ids])).logits[0, start - 1 : -1].argmax(-1).tolist(), ids[start:]


def share(a: list[int], b: list[int]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
