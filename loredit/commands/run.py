"""``loredit run``, which is ``python run_edit.py``: edit facts and measure what each edit did."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import data as facts_of
from .. import hparams as presets
from .common import Device, Dtype, Gpus, Quantize, Ray, Set, Workers, explained, out, quiet, say_failed, spread

if TYPE_CHECKING:
    from ..evaluation.scoring import Measure

# \b keeps the lines of a paragraph as they are.
HELP = """
Edit facts in a language model and measure what the edits did.

\b
The embedded default: SmolLM2-135M and the project's own sample facts; no
model hub needed.
  python run_edit.py --editor roselora --hparams smollm2.yaml

\b
GPT-2 from a local folder; without --model it comes from the hub.
  python run_edit.py --editor roselora --hparams gpt2.yaml --model path/gpt2

\b
The first 100 facts of a benchmark file or of your own list (JSON, JSONL,
CSV), each edited on its own, one setting changed.
  python run_edit.py --editor lora --hparams smollm2.yaml \\
      --data ZsRE-test.json --limit 100 --set lr=1e-3

\b
One edit that carries your whole list; faulty records are left out, listed.
  python run_edit.py --editor lora --hparams smollm2.yaml \\
      --data corrections.csv --skip-bad --mode batch

\b
One fact after another on the same model. After 1, 10 and 100 edits, and at
the end, all facts so far are scored, and the perplexity on a text that you
give is measured; retention.png in the results shows what is forgotten.
  python run_edit.py --editor lora --hparams smollm2.yaml \\
      --data corrections.csv --mode sequential --checkpoints 1,10,100 \\
      --perplexity-text held.txt

\b
Four processes on this machine; all workers of a Ray cluster.
  python run_edit.py --editor lora --hparams smollm2.yaml \\
      --data ZsRE-test.json --workers 4
  python run_edit.py --editor lora --hparams smollm2.yaml \\
      --data ZsRE-test.json --ray auto

Edit success, generalization, portability and locality are percentages, fluency an entropy; the unedited model stands
beside the edited one. Results go to a folder as they come, with a page to look at, report.html; an interrupted run goes
on with --resume.
"""


class Format(str, Enum):
    """The forms of the results."""

    loredit = "loredit"
    easyedit = "easyedit"


class Mode(str, Enum):
    """How facts share edits."""

    single = "single"
    batch = "batch"
    sequential = "sequential"


class Eval(str, Enum):
    """What is measured beside fluency."""

    token_em = "token_em"
    generation = "generation"
    all = "all"


MEASURES: dict[Eval, tuple[Measure, ...]] = {
    Eval.token_em: (),
    Eval.generation: ("generation",),
    Eval.all: ("generation", "probabilities"),
}


EXAMPLES = 3  # facts that are shown before and after at the end


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(number) for number in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no list of numbers such as 1,10,100", param_hint="--checkpoints"
        ) from None


def run(
    editor: Annotated[str, typer.Option(help="Editing method, such as lora or roselora; an unknown name lists all.")],
    hparams: Annotated[
        str, typer.Option(help="YAML file, or a preset in hparams/<editor>/; default.yaml suits any known model.")
    ] = "default.yaml",
    model: Annotated[
        str | None,
        typer.Option(help="Hub id, local folder, GGUF file, smollm2-135m or gemma3-270m; else the preset's."),
    ] = None,
    data: Annotated[
        str, typer.Option(help="Facts: a JSON, JSONL or CSV file, - for standard input, knowedit:ZsRE (hub).")
    ] = "samples",
    mode: Annotated[
        Mode,
        typer.Option(
            help="single: each fact on the unedited model; batch: one edit for all; sequential: one after another."
        ),
    ] = Mode.single,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Sequential: score all facts so far after so many edits; 1,10,100,... if not given."
        ),
    ] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Sequential: facts that are learned together.")] = 1,
    perplexity_text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Batch, sequential: a text to measure the perplexity on.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Edit this many facts at most.")] = None,
    offset: Annotated[int, typer.Option(min=0, help="Skip this many facts first.")] = 0,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out faulty records of the list, and say which.")
    ] = False,
    set_: Set = None,
    eval_: Annotated[
        Eval,
        typer.Option(
            "--eval",
            help="token_em: EasyEdit's metrics; generation: also what a person sees; all: also ROME's probabilities.",
        ),
    ] = Eval.token_em,
    fluency: Annotated[
        bool,
        typer.Option("--fluency/--no-fluency", help="Sample 100 tokens per fact and model and measure their entropy."),
    ] = True,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same numbers.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    edits_at_once: Annotated[
        int | None,
        typer.Option(min=1, help="Facts edited and scored together; as many as the device has use for if not given."),
    ] = None,
    workers: Workers = None,
    ray: Ray = None,
    gpus_per_worker: Gpus = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results; a new one below results/ if not given.")
    ] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="easyedit: write the results in EasyEdit's JSON form as well.")
    ] = Format.loredit,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same settings.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that a model brings along.")
    ] = False,
) -> None:
    points = _numbers(checkpoints)
    with explained("interrupted; the facts that are finished are stored. The same command with --resume goes on."):
        # What can be told without torch, whose import takes seconds, is told first.
        overrides = presets.parsed(set_ or [])
        presets.settings(editor, hparams, overrides)
        facts_given = facts_of.load(data, skip_bad=skip_bad)
        quiet()

        from ..evaluation import runs
        from ..evaluation.report.tables import examples, retention_table, table

        with spread(workers, ray, gpus_per_worker) as several:
            result = runs.run(
                editor,
                hparams,
                mode=mode.value,
                checkpoints=points,
                chunk=chunk,
                perplexity_text=perplexity_text,
                overrides=overrides,
                model=model,
                data=facts_given,
                limit=limit,
                offset=offset,
                skip_bad=skip_bad,
                seed=seed,
                device=device,
                dtype=dtype,
                quantize=quantize,
                edits_at_once=edits_at_once,
                measures=MEASURES[eval_],
                fluency=fluency,
                output=output,
                resume=resume,
                trust_remote_code=trust_remote_code,
                easyedit=format_ is Format.easyedit,
                examples=EXAMPLES,
                workers=several,
                progress=True,
            )
    facts = f"{result.facts} fact{'s' if result.facts > 1 else ''}"
    out.print(table(result.summary, title=f"{editor} on {facts}, mode {mode.value}"))
    if mode is Mode.sequential or perplexity_text:
        out.print(retention_table(result.checkpoints, title="All facts so far"))
    for record in result.bad:
        out.print(f"left out: {record}")
    if result.unanswered:
        out.print(f"left out: {result.unanswered} locality or portability probes whose answer is empty")
    if result.examples:
        out.print(examples(result.examples))
    out.print(f"results in {result.folder}; {facts} in {result.seconds:.0f} s", soft_wrap=True)
    out.print(f"to look at every fact: {result.report}", soft_wrap=True)
    again = f"--editor {editor} --hparams {hparams}" + (f" --data {data}" if data != "samples" else "")
    out.print(f"to keep such edits:    loredit apply my-edits {again}", soft_wrap=True)
    asked = facts_given.facts[offset].prompt
    out.print(f"to ask with them:      loredit ask my-edits {shlex.quote(asked)}", soft_wrap=True, markup=False)
    say_failed([(failure.case_id, failure.message) for failure in result.summary.failed])
