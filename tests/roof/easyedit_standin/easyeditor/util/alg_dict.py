from typing import Any


def its_own(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError


ALG_DICT: dict[str, Any] = dict.fromkeys(["ROME", "MEMIT", "EMMET", "AlphaEdit", "ULTRAEDIT", "LoRA", "FT"], its_own)
