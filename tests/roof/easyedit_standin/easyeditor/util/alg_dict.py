from typing import Any


def its_own_lora(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError


ALG_DICT: dict[str, Any] = {"LoRA": its_own_lora, "FT": its_own_lora}
