"""Every shipped preset, through the real command line, on a model with as many blocks as the one that it is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from typer.testing import CliRunner

from loredit import editors
from loredit import hparams as presets
from run_edit import app

FOLDER = Path(presets.__file__).parent
MODELS = ("gpt2", "gpt2-medium", "gpt2-xl", "gptj", "smollm2")
NARROW = {"compacter": ("reduction_factor=4",)}  # values that go with a real width alone
QUICK = ("stop_at=1e-9", "statistics_tokens=640")  # as soon as the schedule allows it; ten tokens for each input
SHIPPED = sorted(path.relative_to(FOLDER) for name in editors.available() for path in (FOLDER / name).glob("*.yaml"))


def _small(name: str) -> PreTrainedModel:
    """As deep as the named model, and hardly wide at all."""
    ids = {"vocab_size": 257, "eos_token_id": tiny.END}
    if name.startswith("gpt2"):
        blocks = {"gpt2-medium": 24, "gpt2-xl": 48}.get(name, 12)
        return GPT2LMHeadModel(GPT2Config(n_layer=blocks, n_embd=16, n_head=2, n_positions=tiny.CONTEXT, **ids))
    if name == "gptj":
        shape = {"n_layer": 28, "n_embd": 16, "n_head": 2, "n_positions": tiny.CONTEXT, "rotary_dim": 4}
        return GPTJForCausalLM(GPTJConfig(**shape, bos_token_id=None, **ids))
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=30, max_position_embeddings=tiny.CONTEXT, **shape, **ids))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        _small(name).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("preset", SHIPPED, ids=str)
def test_every_shipped_preset_runs_from_the_command_line(preset: Path, models: Path, tmp_path: Path) -> None:
    editor = preset.parent.name
    # default.yaml is for any model.
    model = models / max((name for name in MODELS if preset.stem.startswith(name)), key=len, default="gpt2-medium")
    quick = [value for value in QUICK if value.partition("=")[0] in editors.find(editor).Hparams.model_fields]
    ended = CliRunner().invoke(
        app,
        [
            *("--editor", editor, "--hparams", preset.name, "--model", str(model), "--limit", "1"),
            *("--dtype", "float32", "--no-fluency", "--output", str(tmp_path / "out")),
            *(argument for value in (*quick, *NARROW.get(editor, ())) for argument in ("--set", value)),
        ],
    )
    assert ended.exit_code == 0, ended.output
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["facts"] == 1
