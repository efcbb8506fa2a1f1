"""Generation: seeds side by side give what each gives alone, whole models too; texts, scores, and runs that go on."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import methods
import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from loredit.cli import app
from loredit.data import e2e, xsum
from loredit.data.pairs import Item, Pair
from loredit.engine.model.encoding import Encoder
from loredit.engine.model.loading import LoadedModel
from loredit.engine.model.sites import blocks
from loredit.engine.patches.rows import Rows
from loredit.evaluation.generation import metrics, runs
from loredit.evaluation.generation.decoding import Beam, NoRepeat, written
from loredit.evaluation.generation.writing import Writer, collated, cut, lessons, prompt_of
from loredit.evaluation.tuning.training import train_patches

SHARED = Path(__file__).parents[3] / "shared" / "data"
OUTPUTS = Path(os.environ.get("E2E_OUTPUTS", SHARED / "e2e" / "outputs"))
PAIRS = [
    Pair("name : Ox", "Ox is a pub."),
    Pair("name : Elm | food : fish", "Elm has fish."),
    Pair("name : Ash", "Go to Ash!"),
    Pair("food : soup", "Soup it is, then."),
    Pair("name : Fir", "Fir."),
]


def loaded(family: str = "gpt2") -> LoadedModel:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return LoadedModel(tiny.model(family), tokenizer)


def trained(on: LoadedModel, name: str, seeds: list[int], *, replay: bool = True) -> Any:
    method = methods.editor(name, on.model, on.tokenizer)
    patch = method.fresh(seeds)
    on.model.requires_grad_(False)
    module = Writer(on.model, [patch], smoothing=0.1, replay=replay)
    part = lessons(method.encoder, PAIRS)
    rates = {f"0.{key}": rate for key, rate in patch.rates(method.hparams.lr).items()}
    train_patches(
        module,
        [part] * len(seeds),
        seeds,
        collated,
        rates=rates,
        clip_norm=None,
        steps=8,
        batch_size=2,
        progress=False,
    )
    return module.patches[0].finished(range(len(seeds)))


def logits(on: LoadedModel, patch: Any, edit: int) -> Tensor:
    ids = torch.tensor([on.tokenizer("name : Ox || Ox is")["input_ids"]])
    with patch.attached(on.model, Rows([edit], len(patch), "cpu")), torch.no_grad():
        return on.model(ids).logits


@pytest.mark.parametrize("name", methods.TRAINED)
def test_a_seed_trained_beside_others_is_as_it_would_be_alone(name):
    on = loaded("llama")
    together, alone = trained(on, name, [3, 5]), trained(on, name, [5])
    assert torch.allclose(logits(on, together, 1), logits(on, alone, 0), rtol=0, atol=1e-9)
    assert not torch.allclose(logits(on, together, 0), logits(on, alone, 0), atol=1e-3)


def test_replaying_the_lower_blocks_changes_nothing():
    on = loaded()
    kept, computed = trained(on, "lora", [3]), trained(on, "lora", [3], replay=False)
    assert torch.allclose(logits(on, kept, 0), logits(on, computed, 0), rtol=0, atol=1e-9)


def test_the_loss_is_the_smoothed_mean_over_the_tokens_of_each_edits_texts():
    on = loaded()
    encoder = Encoder(on.tokenizer, tiny.CONTEXT)
    module = Writer(on.model, [methods.editor("lora", on.model, on.tokenizer).fresh([0, 1])], smoothing=0.1)
    part = lessons(encoder, PAIRS)
    got = module.losses(collated([(part[0], part[1]), (part[2], part[3])]))
    for e, pairs in enumerate(([0, 2], [1, 3])):
        each = []
        for i in pairs:
            prompt = on.tokenizer(prompt_of(PAIRS[i].source))["input_ids"]
            ids = [*on.tokenizer(f"{prompt_of(PAIRS[i].source)} {PAIRS[i].target}")["input_ids"], tiny.END]
            out = on.model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]  # a fresh LoRA changes nothing
            each.append(F.cross_entropy(out, torch.tensor(ids[len(prompt) :]), reduction="none", label_smoothing=0.1))
        assert torch.allclose(got[e], torch.cat(each).mean(), atol=1e-12)


def test_one_beam_is_the_likeliest_token_each_time_and_a_batch_changes_no_text():
    on = loaded("llama")
    patch = trained(on, "lora", [3])
    prompts = [tuple(on.tokenizer(prompt_of(pair.source))["input_ids"]) for pair in PAIRS]
    beam = Beam(beams=1, no_repeat_ngram=0, tokens=12)

    def texts(beam: Beam, batch_size: int) -> list[str]:
        found = {}
        with patch.attached(on.model, Rows([0], 1, "cpu")):
            for chunk, some in written(
                on.model, on.tokenizer, prompts, beam, batch_size=batch_size, context=tiny.CONTEXT
            ):
                found |= dict(zip(chunk, some, strict=True))
        return [found[i] for i in range(len(prompts))]

    slow = []
    with patch.attached(on.model, Rows([0], 1, "cpu")), torch.no_grad():
        for prompt in prompts:
            ids = [*prompt]
            for _ in range(12):
                ids.append(int(on.model(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == tiny.END:
                    break
            slow.append(" ".join(on.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).split()))
    assert texts(beam, 1) == texts(beam, 3) == slow
    wide = Beam(beams=4, tokens=12)
    assert texts(wide, 1) == texts(wide, 3)


def test_no_n_gram_comes_twice_in_a_text_but_the_source_may_be_copied():
    source, scores = [1, 2, 3, 4], torch.zeros(1, 6)
    rule = NoRepeat(3, len(source))
    barred = rule(torch.tensor([[*source, 1, 2, 3, 1, 2]]), scores.clone())
    assert barred.isinf().nonzero().tolist() == [[0, 3]]
    assert not rule(torch.tensor([[*source, 1, 2]]), scores.clone()).isinf().any()


# Scores


def test_nist_by_hand():
    """Two items; info(w) = log2(7 / count), and of the pair "a b" log2(count(a) / count(a b))."""
    references = [["a b c", "a b"], ["b d"]]
    # counts: a 2, b 3, c 1, d 1; a-b 2, b-c 1, b-d 1; a-b-c 1
    texts = ["a b", "d"]
    log2 = torch.log2
    uni = (log2(torch.tensor(7 / 2)) + log2(torch.tensor(7 / 3)) + log2(torch.tensor(7.0))) / 3
    bi = log2(torch.tensor(2 / 2)) / 1
    short = (
        torch.log(torch.tensor((3 / 2) / (7 / 3))) ** 2
        * torch.log(torch.tensor(0.5))
        / torch.log(torch.tensor(1.5)) ** 2
    )
    pytest.importorskip("sacrebleu")
    assert metrics.nist(texts, references) == pytest.approx(float((uni + bi) * short.exp()), rel=1e-5)


def test_a_metric_whose_program_is_not_here_is_refused_with_the_way_on(monkeypatch):
    monkeypatch.setattr(metrics, "_has", lambda need: need not in ("java", "pycocoevalcap"))
    with pytest.raises(ValueError, match=r"need java, pycocoevalcap.*loredit\[generation\].*Java.*--metrics bleu,nist"):
        metrics.check(["bleu", "nist", "cider"])
    with pytest.raises(ValueError, match="did you mean 'bleu'"):
        metrics.named(["blue"])


@pytest.mark.slow
def test_all_scores_of_perfect_and_of_other_texts():
    for need in ("sacrebleu", "pycocoevalcap", "rouge_score"):
        pytest.importorskip(need)
    if not metrics._has("java"):
        pytest.skip("needs Java")
    items = [Item("", ("The Ox serves café food for £20 .", "Fish .")), Item("", ("Elm Road has no pub at all .",))]
    perfect = metrics.scores([item.references[0] for item in items], items, [*metrics._NEEDS])
    assert perfect["bleu"] == pytest.approx(100)
    assert perfect["rouge_l"] == pytest.approx(100)
    assert perfect["rouge2"] == pytest.approx(100)
    assert perfect["ter"] == 0
    assert perfect["meteor"] == pytest.approx(100, abs=0.5)  # a text of one chunk is still charged for it
    other = metrics.scores(["Fish and more .", "A pub ."], items, [*metrics._NEEDS])
    assert all(other[name] < perfect[name] for name in perfect if name != "ter")
    assert other["ter"] > 0


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.skipif(not OUTPUTS.is_dir(), reason="needs the published outputs of the E2E challenge, see docs")
@pytest.mark.parametrize(
    ("system", "published"),
    [
        ("tgen", {"bleu": 65.93, "nist": 8.6094, "meteor": 44.83, "rouge_l": 68.50, "cider": 2.2338}),
        ("harvard", {"bleu": 64.96, "nist": 8.5268, "meteor": 43.86, "rouge_l": 68.72, "cider": 2.0850}),
        ("slug2slug", {"bleu": 66.19, "nist": 8.6130, "meteor": 44.54, "rouge_l": 67.72, "cider": 2.2615}),
    ],
)
def test_published_outputs_get_the_published_scores(system, published):
    for need in ("sacrebleu", "pycocoevalcap"):
        pytest.importorskip(need)
    repairs = {"Ł": "£", "Â£": "£", "Ã©": "é", "ã©": "é"}  # of the challenge's own scripts
    content = (OUTPUTS / f"{system}.tsv").read_text(encoding="utf-8-sig")
    for wrong, right in repairs.items():
        content = content.replace(wrong, right)
    rows = [*csv.reader([line.strip() for line in content.split("\n") if line.strip()], delimiter="\t")]
    items = e2e.load(str(SHARED / "e2e")).splits["test"]
    texts = [text for _, text in rows[-len(items) :]]
    assert [e2e.linear(source) for source, _ in rows[-len(items) :]] == [item.source for item in items]
    got = metrics.scores(texts, items, e2e.METRICS)
    # Published with two decimals of a percent, four of NIST and CIDEr.
    assert {name: round(value, 2 if name in ("bleu", "meteor", "rouge_l") else 4) for name, value in got.items()} == (
        pytest.approx(published, abs=1.01e-4)
    )


# Runs


def e2e_folder(folder: Path) -> Path:
    rows = ["mr,ref", *(f'"name[N{i}], food[F{i}]","N{i} has F{i}."' for i in range(6))]
    for name in ("trainset.csv", "devset.csv", "testset_w_refs.csv"):
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def tiny_runs(monkeypatch, tmp_path) -> Path:
    pytest.importorskip("sacrebleu")
    monkeypatch.setattr(runs, "load_model", lambda *_, **__: loaded("llama"))
    monkeypatch.chdir(tmp_path)
    return e2e_folder(tmp_path)


def command(data: Path, editor: str, *more: str) -> Any:
    settings = {"prefix": ["length=2"], "adalora": ["tinit=1", "tfinal=1", "deltaT=1"], "simplexlora": ["T=1", "K=1"]}
    sets = ["steps=4", *settings.get(editor, [])]
    if editor == "finetune":
        sets.append("layers=[1]")
    if editor in ("adapter", "compacter"):
        sets.append("reduction_factor=4")
    arguments = ["generate", "--task", "e2e", "--editor", editor, "--data", str(data), "--metrics", "bleu,nist"]
    arguments += [*(part for value in sets for part in ("--set", value)), "--beams", "2", "--tokens", "8", *more]
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("editor", [*methods.TRAINED, runs.FULL, runs.TOP2])
def test_every_preset_runs_from_data_to_scores(editor, tiny_runs):
    result = command(tiny_runs, editor, "--seeds", "2", "--output", "out")
    assert result.exit_code == 0, result.output
    found = json.loads(Path("out/metrics.json").read_text())
    assert len(found["scores"]["bleu"]["seeds"]) == 2
    assert found["items"] == 6
    model = loaded("llama").model
    if editor == runs.FULL:
        assert found["parameters"]["trained"] == sum(p.numel() for p in model.parameters())
    if editor == runs.TOP2:
        assert found["parameters"]["trained"] == sum(p.numel() for p in blocks(model)[1:].parameters())
    assert len(Path("out/texts.jsonl").read_text().splitlines()) == 12


def test_an_interrupted_run_goes_on_and_writes_the_same_texts(tiny_runs, monkeypatch):
    assert command(tiny_runs, "lora", "--seeds", "2", "--output", "whole").exit_code == 0
    write, written_so_far = runs.append, []

    def dying(path: Path, lines: Any) -> None:
        write(path, lines)
        written_so_far.append(path)
        if len(written_so_far) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs, "append", dying)
    stopped = command(tiny_runs, "lora", "--seeds", "2", "--output", "part", "--decode-batch", "2")
    assert stopped.exit_code == 130
    assert "--resume goes on" in stopped.output
    monkeypatch.setattr(runs, "train_patches", lambda *_, **__: pytest.fail("it is trained already"))
    monkeypatch.setattr(runs, "append", write)
    again = command(tiny_runs, "lora", "--seeds", "2", "--output", "part", "--decode-batch", "2", "--resume")
    assert again.exit_code == 0, again.output

    def texts(name: str) -> list[str]:
        return sorted(Path(name, "texts.jsonl").read_text().splitlines())

    assert texts("part") == texts("whole")
    other = command(tiny_runs, "lora", "--seeds", "2", "--output", "part", "--smoothing", "0", "--resume")
    assert "other settings (smoothing)" in other.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("task", "rows", "scores"),
    [
        ("dart", [{"tripleset": [["Ox", "IS", "a pub"]], "annotations": [{"text": "Ox is a pub."}]}], {"bleu", "ter"}),
        ("xsum", {"document": "It rained. " * 30, "summary": "Rain."}, {"rouge1", "rouge2", "rougel"}),
    ],
)
def test_other_tasks_run_from_data_to_scores(task, rows, scores, tiny_runs, monkeypatch):
    monkeypatch.setattr(xsum, "_LONGEST", 12)
    for split in ("train", "test"):
        Path(f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    names = ["--metrics", "bleu,ter" if task == "dart" else "rouge"]
    result = command(Path.cwd(), "lora", "--task", task, *names, "--output", "out")
    assert result.exit_code == 0, result.output
    assert {*json.loads(Path("out/metrics.json").read_text())["scores"]} == scores
    Path("train.json").unlink()
    lacking = command(Path.cwd(), "lora", "--task", task, *names, "--output", "none")
    assert f"has no training part of {task}" in " ".join(lacking.output.split())
    assert command(Path.cwd(), "lora", "--task", task, *names, "--no-train", "--output", "as-is").exit_code == 0


def test_a_source_is_cut_to_so_many_tokens():
    encoder = Encoder(tiny.tokenizer(), tiny.CONTEXT)
    assert cut(encoder, Pair("name : Ox", "Ox."), 6) == Pair("name :", "Ox.")
    assert cut(encoder, Item("name : Ox", ("Ox.",)), 9) == Item("name : Ox", ("Ox.",))


def test_the_model_as_it_is_writes_once(tiny_runs):
    result = command(tiny_runs, "lora", "--seeds", "3", "--no-train", "--items", "4", "--output", "out")
    assert result.exit_code == 0, result.output
    assert len(Path("out/texts.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "tset"], "did you mean 'test'"),
        (["--set", "stop_at=0.9"], "stop_at belong to knowledge editing"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(arguments, said, tiny_runs):
    result = command(tiny_runs, "lora", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
