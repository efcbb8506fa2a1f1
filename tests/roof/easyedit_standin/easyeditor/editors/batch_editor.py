from enum import Enum


class BatchEditor(Enum):
    FT = "FT"
    LORA = "LoRA"

    @staticmethod
    def is_batchable_method(alg_name: str) -> bool:
        return alg_name in ("FT", "LoRA")
