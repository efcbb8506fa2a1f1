from typing import Any

import torch

CALLABLE_RESTORE_ALGS = {"KN", "GRACE", "WISE"}
PEFT_RESTORE_ALGS = {"LoRA", "QLoRA"}


@torch.no_grad()
def restore(editor: Any, edited_model: Any, weights_copy: Any) -> None:
    if editor.alg_name in CALLABLE_RESTORE_ALGS:
        weights_copy()
    elif editor.alg_name in PEFT_RESTORE_ALGS:
        editor.model = edited_model.unload()
    else:
        for name, value in weights_copy.items():
            editor.model.get_parameter(name)[...] = value
