"""Every method with hyper-parameters for the tiny models. A new method is one more entry.

All leave the lowest layer alone, so that its output is replayed, and reach a token probability of 0.1 within 30 steps;
but for closed forms, whose values are trained at their last layer, and reach later tokens through the layers above it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loredit import editors
from loredit.editors import Editor, Hparams

_SITES = {"sites": ["qkv", "mlp_down"], "layers": [1, 2]}
_LOW_RANK = _SITES | {"lr": 1e-2, "rank": 4, "alpha": 8}

_SOLVED = {"layers": [0, 1], "lr": 0.5, "clamp": 20, "contexts": 1, "statistics_tokens": 400}

METHODS: dict[str, dict[str, Any]] = {
    "adalora": _SITES | {"lr": 5e-2, "init_r": 4, "alpha": 16, "orth_reg_weight": 0.1},
    "adapter": {"placement": "houlsby", "layers": [1, 2], "reduction_factor": 4, "lr": 1e-2},
    "alphaedit": _SOLVED | {"null_energy": 0.9, "ridge": 1e-4},
    "bitfit": {"sites": ["attention_output", "mlp_down"], "layers": [1, 2], "lr": 3e-2},
    "compacter": {"placement": "pfeiffer", "layers": [1, 2], "reduction_factor": 2, "lr": 3e-2},
    "emmet": _SOLVED,
    "finetune": {"sites": ["mlp_down"], "layers": [1, 2], "lr": 5e-3},
    "incontext": {"length": 96, "template": "{}. "},
    "lora": _LOW_RANK,
    "memit": _SOLVED | {"mom2_update_weight": 0.1},
    "prefix": {"length": 3, "hidden": 8, "init_text": "Fact:", "lr": 3e-2},
    "rome": _SOLVED | {"layers": [1]},
    "roselora": _LOW_RANK | {"tau": 0.3, "beta": 0.8, "t_i": 0.1, "t_f": 0.4},
    "simplexlora": _LOW_RANK | {"omega_lr": 2},
    "ultraedit": _SITES | {"lr": 0.02, "contexts": 2},
}

TRAINED = [name for name in METHODS if issubclass(editors.find(name), editors.TrainedEditor)]
"""Those that can be trained on many examples, too."""

# Schedules that are given in steps, fitted to the number of them.
SCHEDULES: dict[str, Callable[[int], dict[str, Any]]] = {
    "adalora": lambda n: {"target_r": 2, "tinit": 1, "tfinal": n // 2} if n > 3 else {"target_r": 4},
    "simplexlora": lambda n: {"T": 2, "K": 2} if n > 3 else {"T": 1, "K": 1},
}


def hparams(method: str, **changes: Any) -> Hparams:
    """The method's hyper-parameters for the tiny models, eight steps unless ``changes`` say otherwise."""
    cls = editors.find(method).Hparams
    values = {"model": "tiny", "steps": 8} | METHODS[method] | changes
    schedule = SCHEDULES[method](values["steps"]) if method in SCHEDULES else {}
    if "steps" not in cls.model_fields:  # it is solved in one
        del values["steps"]
    return cls(**schedule | values)


def editor(method: str, model: Any, tokenizer: Any, *, seed: int = 0, **changes: Any) -> Editor:
    """The method bound to a model, with :func:`hparams`."""
    return editors.find(method)(model, tokenizer, hparams(method, **changes), seed=seed)


def about(loss: float | None, rel: float = 1e-9) -> Any:
    """A loss to be compared with another; None of methods that see none."""
    return loss if loss is None else pytest.approx(loss, rel=rel)
