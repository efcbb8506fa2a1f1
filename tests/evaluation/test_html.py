"""Pages and what stands in them: marks, texts, numbers, and that nothing that anybody wrote becomes markup."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from loredit.cli import app
from loredit.evaluation.metrics import Estimate, MetricSummary, Summary, compare, summarise
from loredit.evaluation.report import figures
from loredit.evaluation.report.changes import Mark, mark, outcome, told
from loredit.evaluation.report.html import differing, distinct, tallies, write_comparison, write_report
from loredit.evaluation.report.reading import UnreadableRunError, read_run
from loredit.evaluation.report.tables import comparison_table, examples, retention_table, table
from loredit.evaluation.retention import checkpoint
from loredit.evaluation.scores import AnswerScore, FactScores, Perplexity, ProbeScores, Seen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "'\"><svg onload=document.title='owned'>",
    "<!--<script>",
    "]]>&lt;b&gt;&amp;",
    "{{ 7 * 7 }} {% raw %} ${1}",
    "$\\frac{1}{0}$ $x^2",
    "\u2028\u2029\u0000\u001b[31m",
    "中文 العربية 🙂",
)


def seen(text: str | None, marks: str = "0", rival: float | None = None) -> Seen:
    contrast = None if rival is None else AnswerScore(correct=(False,), log_prob=rival)
    answer = AnswerScore(correct=tuple(m == "1" for m in marks), log_prob=-1.0 * len(marks))
    return Seen(answers=(answer,), generated=text, contrast=contrast)


def probe(kind: str, before: Seen, after: Seen, *, same: str = "1", answers: tuple[str, ...] = ("Rome",), **more):
    given = {"group": kind, "prompt": f"a {kind} prompt"} | more
    marks = tuple(m == "1" for m in same)
    return ProbeScores(kind=kind, answers=answers, base=before, edited=after, same=marks, **given)


def fact(case_id: str = "france", *probes: ProbeScores, **more) -> FactScores:
    given = {"prompt": "The capital of France is", "target_new": "Rome", "steps": 7, "loss": 0.25, "nonzero_share": 1.0}
    return FactScores(case_id=case_id, probes=probes, **given | more)


def usual(case_id: str = "france", after: str = "Rome", neighbour: str = "Lisbon", **more) -> FactScores:
    return fact(
        case_id,
        probe("rewrite", seen("Paris", rival=-0.1), seen(after, "1", rival=-3.0), same="0"),
        probe("rephrase", seen("Paris", rival=-0.1), seen(f"{after}, of course", "1", rival=-3.0), same="0"),
        probe("portability", seen("the Seine"), seen("the Seine"), answers=("the Tiber",), group="Reasoning"),
        probe("locality", seen("Lisbon", "1"), seen(neighbour, "1"), answers=("Lisbon",), group="Neighborhood"),
        base_text="Paris is a city.",
        edited_text="Rome is a city.",
        report={"ranks": {"model.layers.2.mlp.down_proj": 3, "model.layers.5.mlp.down_proj": 8}},
        **more,
    )


RECORD = {
    "editor": "lora",
    "mode": "single",
    "hparams": {"lr": 0.001, "sites": ["mlp_down"]},
    "data": {"source": "facts.json", "facts": 2},
    "seed": 0,
    "device": "cpu",
    "dtype": "float32",
    "versions": {"loredit": "0.1.0"},
    "command": "loredit run --editor lora --hparams smollm2.yaml",
}


def write_run(folder: Path, scores: list[FactScores], **record) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({**RECORD, **record}), encoding="utf-8")
    lines = "".join(one.model_dump_json() + "\n" for one in scores)
    (folder / "results.jsonl").write_text(lines, encoding="utf-8")
    return folder


class Parsed(HTMLParser):
    """A page's elements, the texts between them, and what its scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._script = False

    def handle_data(self, data):
        if self._script:
            self.scripts[-1] += data
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    @property
    def data(self):
        return json.loads(self.scripts[0])


def parsed(path: Path) -> Parsed:
    return Parsed(path.read_text(encoding="utf-8"))


# What changed


@pytest.mark.parametrize(
    ("kind", "before", "after", "expected"),
    [
        ("rewrite", "Paris", "Rome", Mark.LEARNED),
        ("rewrite", "Paris", "in Rome, the capital.", Mark.LEARNED),
        ("rewrite", "Paris", "Romania", Mark.NOT_LEARNED),
        ("rewrite", "the ROME", "Rome", Mark.KNEW),
        ("portability", "Rome", "Paris", Mark.LOST),
        ("rephrase", "", "", Mark.NOT_LEARNED),
        ("locality", "Lisbon", " lisbon.", Mark.KEPT),
        ("locality", "Lisbon", "Lisbon, on the Tagus", Mark.KEPT),
        ("locality", "Porto", "Rome", Mark.BLED),
        ("locality", "Porto", "Faro", Mark.CHANGED),
        ("locality", "Rome", "Rome, Italy", Mark.CHANGED),
    ],
)
def test_marks_say_what_a_reader_would_see(kind, before, after, expected):
    answers = ("Lisbon",) if kind == "locality" else ("Rome",)
    assert mark(probe(kind, seen(before), seen(after), answers=answers), "Rome") is expected


@pytest.mark.parametrize(
    ("kind", "before", "after", "same", "expected"),
    [
        ("rewrite", seen(None, "01"), seen(None, "11"), "01", Mark.LEARNED),
        ("rewrite", seen(None, "01"), seen(None, "01"), "11", Mark.NOT_LEARNED),
        ("locality", seen(None, "00"), seen(None, "00"), "11", Mark.KEPT),
        ("locality", seen(None, "11"), seen(None, "00"), "01", Mark.CHANGED),
        ("locality", seen(None, "1", rival=-2.0), seen(None, "0", rival=-0.5), "0", Mark.BLED),
    ],
)
def test_without_texts_tokens_and_probabilities_decide(kind, before, after, same, expected):
    assert mark(probe(kind, before, after, same=same), "Rome") is expected


def test_a_fact_is_what_its_own_prompt_is():
    learned, not_learned = usual(), usual(after="Lyon")
    assert outcome(learned, None) is Mark.LEARNED
    assert outcome(not_learned, None) is Mark.NOT_LEARNED
    assert outcome(learned, "the loss is not a number") is Mark.FAILED


def test_tallies_count_facts_and_probes_but_not_those_of_failed_facts():
    scores = [usual("a"), usual("b", neighbour="Rome"), fact("c", error="lost")]
    found = {tally.title: (tally.good, tally.total, dict(tally.marks)) for tally in tallies(scores)}
    assert found["facts learned"] == (2, 3, {Mark.LEARNED: 2, Mark.FAILED: 1})
    assert found["neighbours kept"] == (1, 2, {Mark.KEPT: 1, Mark.BLED: 1})


# A run's page


def test_a_page_holds_numbers_figures_settings_and_the_command(tmp_path):
    folder = write_run(tmp_path / "lora-001", [usual("a"), usual("b", neighbour="Rome")])
    path = write_report(folder)
    page = parsed(path)
    assert path == folder / "report.html"
    assert [each.name for each in folder.iterdir() if each.name.startswith(".")] == []
    for said in ("lora: lora-001", "edit success", "15.8 … 100.0", RECORD["command"], "hparams.lr", "0.001"):
        assert said in page.text, said
    svgs = [attributes for tag, attributes in page.tags if tag == "figure"]
    assert [figure["aria-label"] for figure in svgs] == ["Before and after", "Ranks by site"]
    assert "not finished" not in page.text


def test_a_page_needs_nothing_from_elsewhere_and_lets_no_other_script_run(tmp_path):
    page = parsed(write_report(write_run(tmp_path / "run", [usual()])))
    addresses = [
        value
        for tag, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "srcset") and value and not value.startswith("#")
    ]
    assert addresses == []
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base"}
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


@pytest.mark.parametrize("text", HOSTILE)
def test_what_somebody_wrote_stays_text(tmp_path, text):
    evil = fact(
        text,
        probe("rewrite", seen(text), seen(text + "!"), prompt=text, answers=(text,), group=text),
        probe("locality", seen("a"), seen(text), prompt=text, answers=(text,), group=text),
        prompt=text,
        target_new=text,
        base_text=text,
        edited_text=text,
        report={text: {f"model.layers.1.{text}": 1, f"model.layers.2.{text}": 2}},
    )
    failed = fact("f", error=text, prompt=text, target_new=text)
    name = re.sub(r"[/\0]", "", text)
    record = {"editor": text, "mode": text, "command": text, "hparams": {text: [text, {text: text}]}}
    folder = write_run(tmp_path / f"a{name}", [evil, failed], **record)
    other = write_run(tmp_path / f"b{name}", [evil, failed], **record)
    write_report(folder)
    write_comparison([folder, other], tmp_path / "compare.html")
    for path in (folder / "report.html", tmp_path / "compare.html"):
        page = parsed(path)
        assert len(page.scripts) == 2
        assert "owned" not in page.scripts[1]
        assert not {tag for tag, _ in page.tags} & {"img", "iframe", "link"}
        assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
        assert "<" not in page.scripts[0], "nothing in the data ends or begins an element"
        case, prompt, target, _, _, probes = page.data["facts"][0]
        assert (case, prompt, target) == (text, text, text)
        assert probes[0][2:4] == [text, [text]]


def test_data_is_shortened_and_whole(tmp_path):
    scores = [usual("a"), fact("b", error="out of memory")]
    data = parsed(write_report(write_run(tmp_path / "run", scores))).data
    assert data["groups"] == ["Reasoning", "Neighborhood"]
    (_, _, _, text, ((marked, steps, loss, after, error, _),), probes), failed = data["facts"]
    assert (data["marks"][marked], steps, loss, error) == ("learned", 7, 0.25, None)
    assert (text, after) == ("Paris is a city.", "Rome is a city.")
    assert probes[0] == [
        0,
        None,
        "a rewrite prompt",
        ["Rome"],
        ["Paris", 0, 0.368, 0.905],
        [[["Rome", 1, 0.368, 0.05], 0]],
    ]
    assert probes[2][5][0][0][0] == 0, "a text that did not change is not told twice"
    assert (data["marks"][failed[4][0][0]], failed[4][0][4], failed[5]) == ("failed", "out of memory", [])


@pytest.fixture(scope="module")
def thousand(tmp_path_factory) -> Path:
    """The page of a run of 1,000 facts, each with nine probes and long texts."""
    rng = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join("".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(count))

    def one(i: int) -> FactScores:
        kinds = ["rewrite", "rephrase", "rephrase", *["locality"] * 4, "portability", "portability"]
        probes = [
            probe(
                kind,
                seen(words(5), rival=-1.0),
                seen(words(5), rival=-1.0),
                prompt=words(8),
                answers=(words(1),),
                group="Neighborhood",
            )
            for kind in kinds
        ]
        return fact(str(i), *probes, base_text=words(60), edited_text=words(60), steps=int(rng.integers(99)))

    return write_report(write_run(tmp_path_factory.mktemp("thousand") / "run", [one(i) for i in range(1000)]))


def test_a_thousand_facts_take_less_than_four_megabytes(thousand):
    assert thousand.stat().st_size < 4_000_000


def test_answers_generated_beside_the_measures_are_shown(tmp_path):
    measured = fact("a", probe("rewrite", seen(None, "0"), seen(None, "1")))
    example = fact("a", probe("rewrite", seen("Paris", "0"), seen("Rome", "1")))
    folder = write_run(tmp_path / "run", [measured])
    (folder / "examples.jsonl").write_text(example.model_dump_json() + "\n", encoding="utf-8")
    shown = parsed(write_report(folder)).data["facts"][0][5][0]
    assert (shown[4][0], shown[5][0][0][0]) == ("Paris", "Rome")


def test_a_run_that_goes_on_is_shown_as_far_as_it_is_and_left_alone(tmp_path):
    folder = write_run(tmp_path / "run", [usual("10"), usual("9")], data={"source": "x", "facts": 5})
    results = folder / "results.jsonl"
    results.write_text(results.read_text("utf-8") + '{"case_id": "11", "pro', encoding="utf-8")
    before = results.read_bytes()
    page = parsed(write_report(folder))
    assert "This run is not finished: 2 of 5 facts so far." in page.text
    assert [each[0] for each in page.data["facts"]] == ["9", "10"]
    assert results.read_bytes() == before


def test_folders_without_a_run_are_told_apart(tmp_path):
    with pytest.raises(UnreadableRunError, match=r"holds no run \(there is no run.json\)"):
        read_run(tmp_path)
    with pytest.raises(UnreadableRunError, match="without results so far"):
        read_run(write_run(tmp_path / "empty", []))
    broken = write_run(tmp_path / "broken", [usual()])
    (broken / "results.jsonl").write_text('{"case_id": 1}\n', encoding="utf-8")
    with pytest.raises(UnreadableRunError, match=r"results.jsonl, line 1: not a result of this version"):
        read_run(broken)
    (broken / "run.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UnreadableRunError, match="damaged"):
        read_run(broken)


def test_a_run_where_all_failed_has_a_page(tmp_path):
    page = parsed(write_report(write_run(tmp_path / "run", [fact("a", error="lost"), fact("b", error="lost")])))
    assert "2 failed" in page.text


def test_retention_is_drawn(tmp_path):
    scores = [usual("a"), usual("b")]
    folder = write_run(tmp_path / "run", scores, mode="sequential")
    measured = Perplexity(base=20.0, edited=None, tokens=9)
    points = [checkpoint(scores[:1], measured), checkpoint(scores, measured)]
    (folder / "checkpoints.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in points), encoding="utf-8")
    labels = [a["aria-label"] for tag, a in parsed(write_report(folder)).tags if tag == "figure"]
    assert labels[1:4] == ["What is left of all edits so far", "Edit success by age", "Perplexity"]


def test_a_classification_run_has_a_page(tmp_path):
    folder = tmp_path / "mrpc"
    folder.mkdir()
    record = {"task": "mrpc<b>", "editor": "lora", "seeds": [0, 1], "dtype": "float32", "device": "cpu"}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    metrics = {"splits": {"test": {"accuracy": {"mean": 0.75, "std": 0.01, "seeds": [0.74, 0.76]}, "confusion": [[1]]}}}
    (folder / "metrics.json").write_text(json.dumps({**metrics, "seconds": 3.2}), encoding="utf-8")
    (folder / "confusion-test.png").write_bytes(b"\x89PNG")
    page = parsed(write_report(folder))
    assert "0.7500" in page.text
    assert "mrpc<b>" in page.text, "as text"
    assert [a["src"] for tag, a in page.tags if tag == "img"] == ["data:image/png;base64,iVBORw=="]
    with pytest.raises(UnreadableRunError, match="runs of knowledge editing are compared"):
        write_comparison([folder, folder], tmp_path / "compare.html")


# Several runs


def test_a_comparison_pairs_cases_and_tells_what_differs(tmp_path):
    a = write_run(tmp_path / "a" / "lora", [usual("x"), usual("y", after="Lyon"), usual("only a")])
    hparams = {"lr": 0.1, "sites": ["mlp_down"]}
    b = write_run(tmp_path / "b" / "lora", [usual("y"), usual("x", neighbour="Rome")], hparams=hparams)
    ((first, name, found),) = write_comparison([a, b], tmp_path / "out" / "compare.html")
    assert (first, name, found.common, found.unpaired) == ("a/lora", "b/lora", 2, 1)
    page = parsed(tmp_path / "out" / "compare.html")
    assert page.data["runs"] == ["a/lora", "b/lora"]
    assert "2 cases in common with a/lora, 1 in one of them only" in " ".join(page.text.split())
    facts = {each[0]: each for each in page.data["facts"]}
    assert facts["only a"][4][1] is None
    marks = page.data["marks"]
    assert [marks[run[0]] for run in facts["y"][4]] == ["not learned", "learned"]
    assert [marks[run[1]] for run in facts["x"][5][3][5]] == ["kept", "bled"]
    assert "+50.0" in page.text
    assert "hparams.lr" in page.text
    assert [a["aria-label"] for tag, a in page.tags if tag == "figure"] == [
        "Generalization against locality",
        "Portability",
    ]


def test_runs_of_other_facts_cannot_be_compared(tmp_path):
    a, b = write_run(tmp_path / "a", [usual("x")]), write_run(tmp_path / "b", [usual("y")])
    with pytest.raises(ValueError, match="a and b have no case in common"):
        write_comparison([a, b], tmp_path / "compare.html")
    with pytest.raises(ValueError, match="two runs or more"):
        write_comparison([a], tmp_path / "compare.html")


def test_names_are_as_long_as_they_must_be():
    assert distinct([Path("/r/lora-1"), Path("/r/lora-2")]) == ["lora-1", "lora-2"]
    assert distinct([Path("/x/1/lora"), Path("/y/1/lora")]) == ["x/1/lora", "y/1/lora"]
    assert distinct([Path("/x/lora"), Path("/x/lora")]) == ["lora (1)", "lora (2)"]


def test_settings_that_differ_are_found_at_any_depth():
    records = [{"seed": 0, "hparams": {"lr": 1}, "begun": "now"}, {"seed": 0, "hparams": {"lr": 1, "r": 2}}]
    assert differing(records) == [("hparams.r", ["–", "2"])]


# Commands


def test_commands_write_pages_again_and_compare(tmp_path):
    a = write_run(tmp_path / "a", [usual("x"), usual("y")])
    b = write_run(tmp_path / "b", [usual("x"), usual("y", after="Lyon")])
    done = CliRunner().invoke(app, ["report", str(a)])
    assert (done.exit_code, (a / "report.html").exists()) == (0, True)
    done = CliRunner().invoke(app, ["compare", str(a), str(b), "--output", str(tmp_path / "ab.html")])
    assert done.exit_code == 0
    assert "-50.0" in done.stdout
    assert (tmp_path / "ab.html").exists()
    for arguments in (["report", str(tmp_path)], ["compare", str(a), str(b), "--output", str(a / "run.json")]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2
        assert "error: " in done.output
    assert json.loads((a / "run.json").read_text("utf-8"))["editor"] == "lora", "not written over"


def test_a_report_is_made_without_torch(tmp_path):
    folder = write_run(tmp_path / "run", [usual()])
    code = (
        "import sys; from pathlib import Path; from loredit.evaluation.report.html import write_report;"
        f"write_report(Path({str(folder)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


# The terminal


def printed(what: object, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(what)
    return console.file.getvalue()


def wide_scores() -> list[FactScores]:
    scores = [usual(str(i)) for i in range(120)]
    return [*scores, fact("f", error="lost"), fact("g", error="lost")]


def test_tables_fit_80_columns_and_cut_no_word():
    summary = summarise(wide_scores())
    big = {name: m.model_copy(update={"edited": huge(m.edited)}) for name, m in summary.metrics.items()}
    text = printed(table(summary.model_copy(update={"metrics": big}), title="lora on 1200 facts"))
    assert max(map(len, text.splitlines())) <= 80
    for label in ("generalization, margin", "locality (truth)", "failed as 0", "398.8 … 464.2", "1200/4800"):
        assert any(label in line for line in text.splitlines()), label
    assert re.search(r"\w…", text) is None


def huge(estimate: Estimate) -> Estimate:
    return estimate.model_copy(update={"low": 398.8, "high": 464.2, "facts": 1200, "probes": 4800})


def test_comparison_and_retention_fit_too():
    scores = wide_scores()
    other = [usual(str(i), after="Lyon") for i in range(120)]
    text = printed(comparison_table(compare(scores, other), names=("results/lora-smollm2-001", "results/roselora-002")))
    assert "second: results/roselora-002" in text
    points = [checkpoint(scores[:n], Perplexity(base=21.3, edited=123456.7, tokens=900)) for n in (10, 122)]
    text += printed(retention_table(points, title="All facts so far"))
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"\w…", text) is None
    for label in ("generalization, margin", "perplexity", "123456.7", "portability", "unedited model: 21.3"):
        assert label in text, label


def test_examples_show_facts_before_and_after_and_obey_nothing():
    shown = told([fact("none", probe("rewrite", seen(None), seen(None))), usual("a", neighbour="Rome"), usual("b")])
    assert [each.case_id for each in shown] == ["a", "b"]
    text = printed(examples(shown))
    assert re.search(r"before +Paris", text)
    assert re.search(r"after +Rome +learned", text)
    assert re.search(r"after +Rome +bled", text)
    assert "\x1b" not in printed(examples([usual(after="\x1b[2J[red]Rome[/red]")]))
    assert "[red]Rome[/red]" in printed(examples([usual(after="[red]Rome[/red]")])), "brackets are text"


# Figures


def estimate(mean: float, spread: float = 2.0) -> Estimate:
    return Estimate(mean=mean, low=mean - spread, high=mean + spread, facts=30, probes=60)


def summary_at(generalization: float, locality: float) -> Summary:
    values = {"generalization": generalization, "locality": locality, "portability": 40.0}
    metrics = {
        name: MetricSummary(label=name, mode="token_em", edited=estimate(value), base=None)
        for name, value in values.items()
    }
    return Summary(facts=30, failed=(), steps=1.0, nonzero_share=1.0, metrics=metrics)


def crossing(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two segments, (2, 2) each, cross."""

    def side(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> float:
        return float(np.sign((q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])))

    return side(*a, b[0]) * side(*a, b[1]) < 0 and side(*b, a[0]) * side(*b, a[1]) < 0


@pytest.mark.parametrize("seed", range(5))
def test_no_two_lines_to_names_cross_and_no_two_names_meet(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal((95, 90), (3, 3), (12, 2))
    with figures.style():
        figure = figures.panel_tradeoff({f"editor {i}": summary_at(*point) for i, point in enumerate(points)})
        figure.draw_without_rendering()
    (axes,) = figure.axes
    lines = [np.array(line.get_xydata()) for line in axes.lines if line.get_transform() == axes.transAxes]
    assert len(lines) == 12
    assert not [pair for pair in combinations(lines, 2) if crossing(*pair)]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    edges = figure.bbox
    assert all(box.x0 >= edges.x0 and box.x1 <= edges.x1 and box.y1 <= edges.y1 for box in boxes), "nothing is cut"


@pytest.mark.parametrize("blocks", [1, 5, 48])
def test_titles_are_not_cut(tmp_path, blocks):
    values = [{f"model.layers.{i}.mlp.down_proj": 0.5 for i in range(blocks)}] * 1000
    with figures.style():
        figure = figures.sites(values, "Nonzero share of a method whose name is rather long")
        figure.draw_without_rendering()
    title = figure.axes[0].title, figure.axes[0]._left_title
    for text in title:
        assert text.get_window_extent().x1 <= figure.bbox.x1
        assert text.get_window_extent().y1 <= figure.bbox.y1
    with figures.style():
        svg = figures.inline(figure, "a")
    assert svg.count("#08306b") == blocks, "each site is a shape"
    figures.plot_sites(values, tmp_path / "sites.png", title="Nonzero share")
    assert (tmp_path / "sites.png").read_bytes().startswith(b"\x89PNG")


def test_figures_in_a_page_take_its_colour_and_share_no_names():
    with figures.style():
        svgs = [
            figures.inline(figures.panel_tradeoff({"a<b>": summary_at(90, 80), "$\\frac": summary_at(80, 90)}), salt)
            for salt in ("one", "two")
        ]
    assert all(svg.startswith("<svg") and "currentColor" in svg and "a&lt;b&gt;" in svg for svg in svgs)
    assert "$\\frac" in svgs[0], "no formula"
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in svgs]
    assert not set(ids[0]) & set(ids[1])
    assert all(len(found) == len({*found}) for found in ids)


# In a browser


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_the_facts_and_runs_nothing_that_is_in_them(tmp_path):
    evil = usual(HOSTILE[0], prompt=HOSTILE[1], target_new=HOSTILE[2])
    path = write_report(write_run(tmp_path / "run", [usual("a"), evil]))
    assert CHROMIUM is not None
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    quiet += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [CHROMIUM, *quiet, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    page = Parsed(done.stdout)
    assert "2 of 2 facts" in page.text
    assert "<title>lora: run</title>" in done.stdout
    assert "<img" not in done.stdout
    assert HOSTILE[1] in page.text.replace("\xa0", " ")


TIMED = """async (press) => {
    const begun = performance.now();
    document.querySelector(press).click();
    await new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)));
    return performance.now() - begun;
}"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # playwright's own pipes
def test_a_thousand_facts_are_loaded_in_two_seconds_and_sorted_in_one(thousand):
    """The best of three, as others use the machine as well."""
    playwright = pytest.importorskip("playwright.sync_api")
    loaded, everything, sorted_ = [], [], []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for _ in range(3):
            tab = browser.new_page()
            tab.goto(thousand.as_uri())
            loaded.append(tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
            assert tab.locator("#facts tbody tr").count() == 200
            everything.append(tab.evaluate(TIMED, "#facts .more button:last-child"))
            assert tab.locator("#facts tbody tr").count() == 1000
            sorted_ += [tab.evaluate(TIMED, "#facts thead th:last-child button") for _ in range(2)]
            steps = [int(text) for text in tab.locator("#facts tbody td:last-child").all_inner_texts()]
            assert steps == sorted(steps, reverse=True)
            tab.close()
        browser.close()
    assert min(loaded) < 2000
    assert max(min(everything), min(sorted_)) < 1000
