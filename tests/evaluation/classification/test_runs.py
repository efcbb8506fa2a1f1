"""Classification: seeds side by side give what each gives alone, losses and metrics are what they are called."""

from __future__ import annotations

import gzip
import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import methods
import numpy as np
import pytest
import torch
from classified import EXAMPLES, FAMILIES, TEXTS, aqua_folder, essays, glue_folder, loaded, tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
)
from typer.testing import CliRunner

from loredit import editors
from loredit import hparams as presets
from loredit.cli import app
from loredit.data import human_vs_machine
from loredit.data.examples import Example
from loredit.engine.model.loading import LoadedModel
from loredit.engine.model.loading import load as load_model
from loredit.engine.model.sites import head, sites
from loredit.evaluation.classification import figures, runs
from loredit.evaluation.tuning import methods as tuning_methods
from loredit.evaluation.tuning.examples import Preparer
from loredit.evaluation.tuning.side_by_side import Below, SideBySide, fresh_head
from loredit.evaluation.tuning.training import TrainingError, scored
from loredit.hparams.base import TrainedHparams


def setup(on: LoadedModel, editor: str, *, options: bool = False, batch_size: int = 2, **changes: Any) -> runs._Setup:
    changes = {"steps": 4} | changes
    if editor in (runs.FULL, runs.PROBE):
        h = TrainedHparams(model="tiny", **{"lr": 1e-2} | changes)
    else:
        h = methods.hparams(editor, **changes)
    return runs._Setup(editor, h, on, options, train=True, batch_size=batch_size, head_lr=1e-2, progress=False)


def trained(on: LoadedModel, editor: str, seeds: list[int], examples: Any = EXAMPLES, **more: Any) -> Tensor:
    """(N, E, K), the logits of the examples after training on them with each seed."""
    prepare = Preparer(on.model, on.tokenizer, 32, 0)
    part = prepare(examples)
    return runs._train(setup(on, editor, **more), [part] * len(seeds), seeds, None, {"all": prepare(examples)}).logits[
        "all"
    ]


# Training


@pytest.mark.parametrize("editor", [*methods.TRAINED, runs.PROBE])
def test_a_seed_trained_beside_others_is_as_it_would_be_alone(editor):
    together = trained(loaded(), editor, [3, 5])
    alone = trained(loaded(), editor, [5])
    assert torch.allclose(together[:, 1:], alone, rtol=0, atol=1e-9)  # padding differs, hence rounding
    assert not torch.allclose(together[:, :1], alone, atol=1e-3)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bert"])
def test_every_family_takes_patches_and_heads(family):
    on = loaded(family)
    before = {name: p.clone() for name, p in on.model.named_parameters()}
    untouched = on.model(torch.tensor([[5, 6, 7]])).logits
    together = trained(on, "lora", [3, 5])
    assert torch.allclose(together[:, 1:], trained(loaded(family), "lora", [5]), rtol=0, atol=1e-9)
    assert all(torch.equal(p, before[name]) for name, p in on.model.named_parameters())
    assert torch.equal(on.model(torch.tensor([[5, 6, 7]])).logits, untouched)
    assert {site.layer for site in head(on.model)} == {3}
    assert {site.outputs for site in sites(on.model, ["attention_output", "mlp_down"])} == {16}


def test_multiple_choice_scores_every_option_with_its_question():
    examples = [Example(tuple((text, f"{pair}{o}") for o in "abc"), i % 3) for i, (text, pair) in enumerate(TEXTS)]
    on = loaded("llama", labels=1)
    together = trained(on, "lora", [3, 5], examples, options=True)
    assert together.shape == (len(TEXTS), 2, 3)
    assert torch.allclose(
        together[:, 1:], trained(loaded("llama", labels=1), "lora", [5], examples, options=True), atol=1e-9
    )
    # One option alone gets the score that it gets among the others.
    patches = [fresh_head(on.model, [0])]
    module = SideBySide(on.model, patches, options=True, autocast=False)
    prepare = Preparer(on.model, on.tokenizer, 32, 0)
    score = partial(scored, module, edits=1, tokenizer=on.tokenizer, batch_size=4, progress=False)
    third = [example._replace(texts=example.texts[2:]) for example in examples]
    assert torch.allclose(score(prepare(examples))[:, :, 2:], score(prepare(third)), atol=1e-12)


def test_the_probe_is_what_plain_torch_gives():
    on = loaded("llama")
    steps, lr = 5, 1e-2
    got = trained(on, runs.PROBE, [7], batch_size=len(EXAMPLES), steps=steps, lr=lr)

    fresh = fresh_head(on.model, [7]).branches[0]
    own = nn.Linear(16, 2).double()
    own.weight.data, own.bias.data = fresh.weight[0].detach().clone(), fresh.bias[0].detach().clone()
    ids = [on.tokenizer(text, "\n" + pair)["input_ids"] for text, pair in TEXTS]
    with torch.no_grad():
        features = torch.stack([on.model.model(torch.tensor([i])).last_hidden_state[0, -1] for i in ids])
    labels = torch.tensor([int(e.label) for e in EXAMPLES])
    adam = torch.optim.Adam(own.parameters())
    for step in range(steps):
        warm = math.ceil(0.06 * steps)
        for group in adam.param_groups:
            group["lr"] = lr * (step / warm if step < warm else (steps - step) / (steps - warm))
        adam.zero_grad()
        F.cross_entropy(own(features), labels).backward()
        adam.step()
    assert torch.allclose(got[:, 0], own(features), atol=1e-9)


def test_full_fine_tuning_changes_a_copy_with_a_head_of_each_seed():
    on = loaded()
    before = {name: p.clone() for name, p in on.model.named_parameters()}
    logits = trained(on, runs.FULL, [3, 5])
    assert all(torch.equal(p, before[name]) for name, p in on.model.named_parameters())
    assert logits.shape == (len(TEXTS), 2, 2)
    assert not torch.allclose(logits[:, 0], logits[:, 1], atol=1e-3)
    prepare = Preparer(on.model, on.tokenizer, 32, 0)
    one = runs._whole(setup(on, runs.FULL), prepare(EXAMPLES), 3, None, {})
    assert one.parameters + one.head == sum(p.numel() for p in on.model.parameters())


def test_replaying_the_lower_blocks_changes_nothing(monkeypatch):
    families = ("bert", "llama")
    kept = [trained(loaded(family), "lora", [3, 5], layers=[2]) for family in families]
    made = Below.__init__
    monkeypatch.setattr(Below, "__init__", lambda self, model, layer: made(self, model, 0))
    monkeypatch.setattr(Below, "_hidden", lambda *_: pytest.fail("nothing is to be replayed here"))
    for family, before in zip(families, kept, strict=True):
        assert torch.allclose(before, trained(loaded(family), "lora", [3, 5], layers=[2]), rtol=0, atol=1e-9)


def test_a_loss_that_is_no_number_ends_the_run_with_advice(monkeypatch):
    beyond = methods.hparams("lora", steps=4).model_copy(update={"lr": 1e200})
    monkeypatch.setattr(methods, "hparams", lambda *_, **__: beyond)
    with pytest.raises(TrainingError, match=r"the loss became .*nan.* at step \d; a lower lr may help"):
        trained(loaded(), "lora", [0])


# Losses and metrics


def test_class_weights_make_all_classes_weigh_the_same():
    on = loaded()
    part = Preparer(on.model, on.tokenizer, 32, 0)([e._replace(label=int(i > 3)) for i, e in enumerate(EXAMPLES)])
    weights = runs._class_weights([part], 2, on)
    assert torch.allclose(weights, torch.tensor([[6 / (2 * 4), 6 / (2 * 2)]]))


def test_a_member_of_an_ensemble_sees_its_class_and_the_reference_class_only():
    examples = [Example(((str(c), None),), c) for c in (0, 1, 2, 0)]
    assert [(e.texts[0][0], e.label) for e in runs._lesson(examples, 0, 2)] == [("0", 0), ("2", 1), ("0", 0)]


# Runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT on disk."""
    path = tmp_path_factory.mktemp("models") / "bert"
    loaded().model.float().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def run(folder: Path, task: str, editor: str, data: Path, *more: str) -> Any:
    """A run of the command line in two steps; its output where it fails, else metrics and folder."""
    output = data.parent / f"{task}-{editor}{len([*data.parent.iterdir()])}"
    arguments = ["--task", task, "--editor", editor, "--data", str(data), "--output", str(output), "--dtype", "float32"]
    values = {"model": str(folder), "steps": 4, "lr": 1e-2}
    if editor not in (runs.FULL, runs.PROBE):
        values |= methods.hparams(editor, steps=4).model_dump(mode="json") | {"model": str(folder)}
    settings = data.parent / "settings.yaml"
    settings.write_text(json.dumps(values))
    ended = CliRunner().invoke(
        app,
        [
            "classify",
            *arguments,
            "--hparams",
            str(settings),
            "--seeds",
            "2",
            "--batch-size",
            "2",
            "--max-length",
            "16",
            *more,
        ],
    )
    if ended.exit_code:
        assert ended.exit_code == 2, ended.output
        return " ".join(ended.output.split())
    (output / "said.txt").write_text(ended.output)
    return json.loads((output / "metrics.json").read_text()), output


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder with an RTE of eight rows."""
    folder = tmp_path / "data"
    folder.mkdir()
    labels = ("entailment", "not_entailment")
    return glue_folder(folder, "rte", *(f"{i}\tIt is {i}.\tIt was.\t{labels[i % 2]}" for i in range(8)))


@pytest.mark.parametrize(
    ("editor", "pictures"),
    [("roselora", {"nonzero.png"}), ("simplexlora", {"ranks.png"}), (runs.FULL, set()), (runs.PROBE, set())],
)
def test_a_run_leaves_all_that_repeats_and_describes_it(editor, pictures, folder, rows):
    metrics, output = run(folder, "rte", editor, rows)
    assert {p.name for p in output.iterdir()} >= {"run.json", "metrics.json", "confusion-dev.png", *pictures}
    assert len(metrics["splits"]["dev"]["accuracy"]["seeds"]) == 2
    assert np.sum(metrics["splits"]["dev"]["confusion"]) == 2 * 8
    record = json.loads((output / "run.json").read_text())
    assert (record["task"], record["editor"], record["seeds"], record["hparams"]["steps"]) == ("rte", editor, [0, 1], 4)
    assert record["data"]["examples"] == {"train": 8, "dev": 8}
    again, _ = run(folder, "rte", editor, rows)
    assert again["splits"] == metrics["splits"], "same seeds, same numbers"
    if editor == "roselora":
        share = np.array(metrics["curves"]["nonzero"])
        assert metrics["curves"]["steps"] == [1, 2, 3, 4]
        assert (share[-1] < 0.5).all()
        assert metrics["parameters"]["nonzero_share"] == pytest.approx(share[-1].tolist())


def test_an_untrained_run_scores_the_model_as_it_is(folder, rows):
    metrics, _ = run(folder, "rte", "lora", rows, "--no-train")
    on, prepared = loaded(), None
    prepare = Preparer(on.model, on.tokenizer, 16, 0)
    on.model.float()
    module = SideBySide(on.model, [fresh_head(on.model, [0, 1])], options=False, autocast=False)
    prepared = prepare([Example(((f"It is {i}.", "It was."),), i % 2) for i in range(8)])
    answers = scored(module, prepared, 2, on.tokenizer, batch_size=3, progress=False).argmax(2)
    expected = [(answers[:, e] == torch.arange(8) % 2).float().mean().item() for e in range(2)]
    assert metrics["splits"]["dev"]["accuracy"]["seeds"] == expected


def test_the_ensemble_reports_its_members_and_both_ways_to_join_them(folder, tmp_path):
    data = essays(tmp_path / "essays.jsonl.gz", 20)
    for editor in ("lora", runs.FULL):
        metrics, output = run(folder, "human-vs-machine", editor, data, "--ensemble")
        test = metrics["splits"]["test"]
        assert test["rules"].keys() == {"mean", "odds", "temperature", "stacking"}
        assert metrics["splits"]["dev"]["rules"].keys() == {"mean", "odds"}, "what is fitted on dev is not scored there"
        assert test["members"].keys() == {"Beta", "Zeta"}
        assert test["members"]["Zeta"]["by_class"].keys() == {"Human", "Zeta"}
        assert len(test["members"]["Zeta"]["accuracy"]["seeds"]) == 2
        assert (output / "confusion-test-odds.png").is_file()
        assert len(metrics["parameters"]["nonzero_share"]) == 4


def changed(data: Path, split: str | None, keep: bool = True) -> Path:
    """The essays with those of a split in other words, or without them."""
    lines = gzip.decompress(data.read_bytes()).decode().splitlines()
    rows = []
    for row in map(json.loads, lines):
        if human_vs_machine.split_of(f"{row['split']} {row['index']}") != split:
            rows.append(row)
        elif keep:
            rows.append(row | {"text": f"{row['text'][::-1]} {row['label']}"})
    other = data.with_name(f"{split}-{keep}.jsonl")
    other.write_text("\n".join(map(json.dumps, rows)))
    return other


def test_calibration_is_fitted_on_dev_and_never_on_test(folder, tmp_path):
    data = essays(tmp_path / "essays.jsonl.gz", 30)
    first, _ = run(folder, "human-vs-machine", "probe", data, "--ensemble")
    assert first["calibration"].keys() == {"temperature", "stacking"}
    assert [len(one["temperatures"]) for one in first["calibration"]["temperature"]] == [2, 2], "by seed and member"
    other_test, _ = run(folder, "human-vs-machine", "probe", changed(data, "test"), "--ensemble")
    assert other_test["calibration"] == first["calibration"]
    assert other_test["splits"]["test"] != first["splits"]["test"]
    other_dev, _ = run(folder, "human-vs-machine", "probe", changed(data, "dev"), "--ensemble")
    assert other_dev["calibration"] != first["calibration"]
    assert other_dev["splits"]["test"]["rules"]["odds"] == first["splits"]["test"]["rules"]["odds"]


def test_one_classifier_is_calibrated_beside_its_own_answer(folder, tmp_path):
    data = essays(tmp_path / "essays.jsonl.gz", 20)
    plain, output = run(folder, "human-vs-machine", "probe", data)
    assert plain["calibration"] == {}
    assert json.loads((output / "run.json").read_text())["calibrate"] == []
    both, output = run(folder, "human-vs-machine", "probe", data, "--calibrate", "temperature")
    assert json.loads((output / "run.json").read_text())["calibrate"] == ["temperature"]
    assert both["splits"]["dev"] == plain["splits"]["dev"]
    test = both["splits"]["test"]
    assert {name: part for name, part in test.items() if name != "rules"} == plain["splits"]["test"]
    assert test["rules"]["temperature"]["confusion"] == test["confusion"], "a temperature changes no answer"
    assert test["rules"]["temperature"]["log_loss"] != test["log_loss"]


def test_what_cannot_be_calibrated_is_refused_before_anything_is_trained(folder, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "load_model", lambda *_, **__: pytest.fail("no model is to be loaded"))
    data = essays(tmp_path / "essays.jsonl.gz", 30)
    without = changed(data, "dev", keep=False)
    said = run(folder, "human-vs-machine", "lora", without, "--ensemble")
    remedy = "--calibrate none does without"
    assert f"human-vs-machine has no dev split to fit temperature and stacking on; {remedy}" in said
    said = run(folder, "rte", "lora", rows, "--calibrate", "stacking")
    assert "rte is scored on dev alone, on which stacking would be fitted: no split would be left" in said
    assert (
        "unknown calibration 'stackin'; did you mean 'stacking'? There are: none, temperature, stacking, both"
        in run(folder, "rte", "lora", rows, "--calibrate", "stackin")
    )
    few = data.with_name("few.jsonl")
    lines = changed(data, None).read_text().splitlines()
    dev = [human_vs_machine.split_of(f"s {json.loads(line)['index']}") == "dev" for line in lines]
    few.write_text("\n".join(line for line, held in zip(lines, dev, strict=True) if not (held and "Zeta" in line)))
    said = run(folder, "human-vs-machine", "lora", few, "--calibrate", "temperature")
    assert f"human-vs-machine's dev split has no example of Zeta to calibrate on; {remedy}" in said
    scored = tmp_path / "stsb"
    scored.mkdir()
    glue_folder(scored, "stsb", *(f"0\tA {i}.\tB.\t{i}" for i in range(5)))
    assert "stsb is scored by a number, not by classes" in run(folder, "stsb", "lora", scored, "--calibrate", "both")


def test_an_ensemble_without_dev_runs_uncalibrated(folder, tmp_path):
    data = changed(essays(tmp_path / "essays.jsonl.gz", 20), "dev", keep=False)
    metrics, _ = run(folder, "human-vs-machine", "probe", data, "--ensemble", "--calibrate", "none")
    assert metrics["splits"].keys() == {"test"}
    assert metrics["splits"]["test"]["rules"].keys() == {"mean", "odds"}


def test_every_class_is_printed_with_its_scores_and_answers(folder, tmp_path):
    data = essays(tmp_path / "essays.jsonl.gz", 20)
    metrics, output = run(folder, "human-vs-machine", "probe", data, "--calibrate", "stacking")
    said = (output / "said.txt").read_text()
    for title, part in {
        "dev": metrics["splits"]["dev"],
        "test": metrics["splits"]["test"],
        "test stacking": metrics["splits"]["test"]["rules"]["stacking"],
    }.items():
        lines = said[said.index(f"\n{title}, by class") + 1 :].splitlines()
        headings = ["class", "precision", "recall", "F1", "as Human", "as Beta", "as Zeta"]
        assert [heading.strip() for heading in lines[2].strip("┃").split("┃")] == headings
        for line, (name, scores), counts in zip(lines[4:], part["by_class"].items(), part["confusion"], strict=False):
            means = [f"{scores[metric]['mean']:.4f}" for metric in ("precision", "recall", "f1")]
            assert re.findall(r"[\w.]+", line) == [name, *means, *map(str, counts)]
    assert (output / "classes-test.png").is_file()


def test_bars_by_class_are_as_long_as_the_scores(monkeypatch, tmp_path):
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "save", lambda figure, _: drawn.append(figure))

    def scores(value: float) -> dict[str, Any]:
        return {m: {"mean": value + i / 10, "std": 0.01} for i, m in enumerate(("precision", "recall", "f1"))}

    found = {
        "odds": {"Human": scores(0.1), "Beta": scores(0.2)},
        "stacking": {"Human": scores(0.5), "Beta": scores(0.6)},
    }
    figures.plot_by_class(found, "essays", tmp_path / "classes.png")
    for i, axes in enumerate(drawn[0].axes):
        bars = [bar.get_width() for container in axes.containers for bar in getattr(container, "patches", [])]
        assert bars == pytest.approx([100 * (value + i / 10) for value in (0.1, 0.2, 0.5, 0.6)])
        assert [label.get_text() for label in drawn[0].axes[0].get_yticklabels()] == ["Human", "Beta"]


@pytest.mark.parametrize(("task", "tokens"), [("human-vs-machine", 256), ("rte", 128)])
def test_texts_are_cut_to_what_the_tasks_texts_want(task, tokens, rows, folder, tmp_path, monkeypatch):
    lengths = []

    class Noted(Preparer):
        def __init__(self, model: Any, tokenizer: Any, max_length: int, positions: int) -> None:
            lengths.append(max_length)
            super().__init__(model, tokenizer, max_length, positions)

    monkeypatch.setattr(runs, "Preparer", Noted)
    data = str(rows if task == "rte" else essays(tmp_path / "essays.jsonl.gz", 20))
    settings = {"model": str(folder), "steps": 1, "lr": 1e-2}
    result = runs.run(task, "probe", data=data, overrides=settings, seeds=[0], output=tmp_path / "run", device="cpu")
    assert lengths == [tokens]
    assert json.loads((result.folder / "run.json").read_text())["max_length"] == tokens


def test_multiple_choice_and_regression_run(folder, tmp_path):
    data = tmp_path / "aqua"
    data.mkdir()
    said = run(folder, "aqua", "lora", aqua_folder(data))
    assert len(said) == 2, said
    metrics, _ = said
    assert set(metrics["splits"]["test"]["by_class"]) == set("ABCDE")
    data = tmp_path / "stsb"
    data.mkdir()
    metrics, _ = run(folder, "stsb", "lora", glue_folder(data, "stsb", *(f"0\tA {i}.\tB.\t{i}" for i in range(5))))
    assert metrics["splits"]["dev"].keys() == {"pearson", "spearman", "mean_squared_error"}


def test_bad_input_is_one_clear_message(folder, rows):
    assert "unknown task 'mprc'; did you mean 'mrpc'? There are: cola, sst2, mrpc" in run(folder, "mprc", "lora", rows)
    said = CliRunner().invoke(app, ["classify", "--task", "rte", "--editor", "lore"]).output
    assert re.search(
        r"unknown editor 'lore'; did you mean 'lora'\? There are: adalora, .*full, probe", " ".join(said.split())
    )
    said = CliRunner().invoke(app, ["classify", "--task", "rte", "--editor", "ultraedit"]).output
    assert "ultraedit solves for facts in closed form and cannot be trained" in " ".join(said.split())
    assert "--ensemble is for human-vs-machine" in run(folder, "rte", "lora", rows, "--ensemble")
    assert "kl_weight belong to knowledge editing" in run(folder, "rte", "lora", rows, "--set", "kl_weight=0.1")
    assert "holds no mrpc data: expected train.tsv" in run(folder, "mrpc", "lora", rows.parent / "none")
    _, output = run(folder, "rte", "probe", rows)
    assert "already holds a run; --output names another folder" in run(
        folder, "rte", "probe", rows, "--output", str(output)
    )


@pytest.mark.pretrained
def test_minilm_comes_from_its_wheel_with_its_weights_and_a_fresh_head():
    on = load_model("minilm-l6", device="cpu", dtype="float32", labels=3)
    texts = ["The cat sleeps on the sofa.", "A cat is asleep on a couch.", "Interest rates rose in March."]
    batch = on.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = on.model.bert(**batch).last_hidden_state * batch["attention_mask"][..., None]
    same, other, _ = F.cosine_similarity(hidden.sum(1)[:, None], hidden.sum(1)[None], dim=2)[[0, 0, 1], [1, 2, 2]]
    assert same > 0.7 > 0.3 > other  # as the sentence embeddings that this model was trained for
    assert on.model.classifier.weight.shape == (3, 384)


@pytest.mark.pretrained
def test_smollm2_scores_options_the_same_whatever_is_beside_them():
    on = load_model("smollm2-135m", device="cpu", dtype="float32", labels=1)
    examples = [
        Example((("One and one?", "2"), ("One and one?", "far too many words")), 0),
        Example((("A", "B"),) * 2, 0),
    ]
    module = SideBySide(on.model, [fresh_head(on.model, [0])], options=True, autocast=False)
    prepared = Preparer(on.model, on.tokenizer, 64, 0)(examples)
    together, alone = (
        scored(module, prepared, 1, on.tokenizer, batch_size=size, progress=False)[:, 0] for size in (2, 1)
    )
    assert torch.allclose(together, alone, atol=1e-3)  # float32, other padding
    assert together[0].diff().abs() > 0.01 > together[1].diff().abs()


def test_a_prefix_is_refused_where_attention_takes_none(rows, tmp_path):
    loaded("deberta").model.float().save_pretrained(tmp_path / "deberta")
    tokenizer().save_pretrained(tmp_path / "deberta")
    assert "which deberta models do not take" in run(tmp_path / "deberta", "rte", "prefix", rows)


PRESETS = sorted(path.name for path in (Path(presets.__file__).parent / "classification").glob("*.yaml"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_shipped_preset_is_valid_opens_with_its_command_and_fits_its_model(name):
    editor = Path(name).stem
    settings = tuning_methods.settings(editor, "classification", None, {})
    text = (Path(presets.__file__).parent / "classification" / name).read_text()
    command = f"# loredit classify --task mrpc --editor {editor}"
    assert text.splitlines()[0] == command
    if editor not in (runs.FULL, runs.PROBE):
        on = _minilm()
        assert len(editors.find(editor)(on.model, on.tokenizer, settings).fresh([0, 1])) == 2


def _minilm() -> LoadedModel:
    """As deep and wide as MiniLM-L6, with hardly a word."""
    config = BertConfig(
        vocab_size=257, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=64
    )
    return LoadedModel(BertForSequenceClassification(config).eval(), tokenizer())


def test_there_is_a_preset_for_every_method():
    assert [Path(name).stem for name in PRESETS] == sorted([*methods.TRAINED, runs.FULL, runs.PROBE])
