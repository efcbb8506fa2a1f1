"""Tiny classifiers, and classification sets in the benchmarks' own files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import tiny
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaConfig,
    DebertaForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from loredit.data.examples import Example
from loredit.engine.model.loading import LoadedModel

PAD = 256


_SHAPE = {
    "vocab_size": 257,
    "pad_token_id": PAD,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
}


_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}


FAMILIES = {
    "bert": lambda **k: BertForSequenceClassification(BertConfig(**_SHAPE, **k)),
    "roberta": lambda **k: RobertaForSequenceClassification(RobertaConfig(**_SHAPE | {"pad_token_id": 1}, **k)),
    "deberta": lambda **k: DebertaForSequenceClassification(DebertaConfig(**_SHAPE, **_RELATIVE, **k)),
    "deberta_v2": lambda **k: DebertaV2ForSequenceClassification(DebertaV2Config(**_SHAPE, **_RELATIVE, **k)),
    "llama": lambda **k: LlamaForSequenceClassification(LlamaConfig(**_SHAPE, num_key_value_heads=1, **k)),
    "gpt2": lambda **k: GPT2ForSequenceClassification(
        GPT2Config(vocab_size=257, pad_token_id=PAD, n_embd=16, n_layer=3, n_head=2, n_positions=96, **k)
    ),
}


def tokenizer() -> PreTrainedTokenizerFast:
    made = tiny.tokenizer()
    made.pad_token = made.eos_token
    return made


def loaded(family: str = "bert", labels: int = 2, **shape: Any) -> LoadedModel:
    torch.manual_seed(0)
    model = FAMILIES[family](num_labels=labels, **shape).double().eval()
    return LoadedModel(model, tokenizer())


TEXTS = [
    ("a", "b c"),
    ("some more", "and more"),
    ("x y z", "x"),
    ("no", "yes"),
    ("this one is longer", "by far"),
    ("q", "q"),
]


EXAMPLES = [Example(((text, pair),), i % 2) for i, (text, pair) in enumerate(TEXTS)]


# One line of each task's own train file (header, row), and what is to be read from it.
ROWS = {
    "cola": (None, "gj04\t1\t\tThey drank.", (("They drank.", None), 1)),
    "sst2": ("sentence\tlabel", "so so \t0", (("so so ", None), 0)),
    "mrpc": (
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t7\t8\tHe said " no .\t" No .',
        (('He said " no .', '" No .'), 1),
    ),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tWhy?\tHow?\t0", (("Why?", "How?"), 0)),
    "stsb": ("index\tsentence1\tsentence2\tscore", "0\tA dog.\tA cat.\t2.750", (("A dog.", "A cat."), 2.75)),
    "mnli": ("index\tsentence1\tsentence2\tgold_label", "0\tIt is.\tIs it?\tneutral", (("It is.", "Is it?"), 1)),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tnot_entailment", (("Who?", "He."), 1)),
    "rte": ("index\tsentence1\tsentence2\tlabel", "0\tIt is.\tIt was.\tentailment", (("It is.", "It was."), 0)),
}


def glue_folder(folder: Path, task: str, *rows: str) -> Path:
    header, row, _ = ROWS[task]
    lines = [*([header] if header else []), *(rows or [row])]
    for name in ("train.tsv", "dev_matched.tsv" if task == "mnli" else "dev.tsv"):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


QUESTION = {"question": "1 + 1?", "options": ["A)1", "B)2 )", "C) 3", "D)4", "E)E)"], "rationale": "x", "correct": "B"}


def aqua_folder(folder: Path, **train: object) -> Path:
    rows = {
        "train": [QUESTION | train, QUESTION | {"question": " 2 +  2? "}],
        "dev": [QUESTION | {"question": "2 + 2?"}],
    }
    for name, records in {**rows, "test": [QUESTION | {"question": "3?"}]}.items():
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, records)))
    return folder


def essays(path: Path, topics: int = 60, **more: object) -> Path:
    rows = [
        {"text": f"{label} {topic}", "label": label, "split": "s", "index": topic} | more
        for label in ("Zeta", "Human", "Beta")
        for topic in range(topics)
    ]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path
