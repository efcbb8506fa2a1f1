"""``loredit``: edits as things that are made, looked at, asked, merged, exported and undone."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .bar import Bar
from .evaluation.classification.command import HELP as CLASSIFY
from .evaluation.classification.command import classify

if TYPE_CHECKING:
    from .editors import Edits

# \b keeps the lines of a paragraph as they are.
HELP = """
Change facts in a language model, and keep the changes as small folders that can be asked, merged, shared and undone.

\b
Learn each fact of a list as an edit of its own; look at what the folder holds.
  loredit apply my-edits --data facts.json
  loredit show my-edits

\b
Answers without and with the edits, side by side; undo one fact.
  loredit ask my-edits "The capital of France is"
  loredit remove my-edits france

\b
A model with one edit in its weights; an adapter for PEFT.
  loredit merge my-edits model-out --case water
  loredit export my-edits adapter --case water

\b
What the same methods give outside editing.
  loredit classify --task mrpc --editor roselora --data GLUE_DIR

Benchmarks are run with run_edit.py.
"""

Folder = Annotated[Path, typer.Argument(help="Folder with edits, written by `loredit apply`.", show_default=False)]
Case = Annotated[str | None, typer.Option("--case", help="Case id of the edit; needed if the folder holds several.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Where the model is now; else where it was when it was edited.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Tokens = Annotated[int, typer.Option("--tokens", min=1, help="Length of an answer, at most; it ends with its line.")]

app = typer.Typer(
    help=HELP, add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
out, err = Console(highlight=False), Console(stderr=True, highlight=False)


class Mode(str, Enum):
    """How facts become edits."""

    single = "single"
    batch = "batch"


class Form(str, Enum):
    """The forms that edits are exported to."""

    peft = "peft"


@contextmanager
def _explained() -> Iterator[None]:
    """Errors that are meant for people end the command with their message."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        err.print("error: ", str(error), sep="", style="red", markup=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def apply(
    folder: Annotated[Path, typer.Argument(help="Folder to write; edits that it holds are replaced.")],
    data: Annotated[str, typer.Option(help="Facts: a JSON, JSONL or CSV file, - for standard input.")] = "samples",
    editor: Annotated[str, typer.Option(help="Editing method; an unknown name lists all.")] = "roselora",
    hparams: Annotated[str, typer.Option(help="YAML file, or a preset in hparams/<editor>/.")] = "smollm2.yaml",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one hyper-parameter; repeatable.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="single: one edit for each fact; batch: one edit that carries all facts.")
    ] = Mode.single,
    limit: Annotated[int | None, typer.Option(min=1, help="Edit this many facts at most.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out faulty records of the list.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run; each finished batch of edits was kept.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Hub id, folder, GGUF file, smollm2-135m; else the preset's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same numbers.")] = 0,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Of the model: auto, float32, bfloat16.")] = "auto",
) -> None:
    """Learn facts and keep them in a folder.

    In mode single, a run that is interrupted or killed loses the batch of facts in flight, and --resume goes on.

    loredit apply my-edits --data facts.csv --set lr=1e-3
    """
    with _explained():
        import json

        from . import data as facts_of
        from . import hparams as presets
        from .editors import find, load_model

        cls = find(editor)
        named = [f"model={json.dumps(model)}"] if model else []
        settings = presets.load(cls, hparams, [*(set_ or []), *named])
        loaded_facts = facts_of.load(data, skip_bad=skip_bad)
        loaded = load_model(settings.model, device=device, dtype=dtype)
        method = cls(loaded.model, loaded.tokenizer, settings, seed=seed)
        facts = loaded_facts.facts[:limit]
        with _unfinished(folder, resume) as kept, Bar() as bar:

            def told(phase: str, share: float, total: int) -> None:
                bar(phase, share * total, total)

            if mode is Mode.batch:
                edits = method.edit(facts, progress=told)
            else:
                edits = method.edit_each(facts, kept=kept, progress=told)
            edits.save(folder)
        for record in loaded_facts.bad:
            err.print(f"left out: {record}", markup=False)
        failed = [(e, o.error) for e, o in enumerate(edits.outcomes) if o.error]
        for e, error in failed:
            err.print(f"failed: {', '.join(fact.case_id for fact in edits.facts[e])}: {error}", markup=False)
        out.print(f"{len(edits) - len(failed)} of {len(edits)} edits in {folder}, {_size(folder)}", markup=False)
    if len(failed) == len(edits):
        raise typer.Exit(1)


@contextmanager
def _unfinished(folder: Path, resume: bool) -> Iterator[Path]:
    """Where finished batches of edits lie until all are finished."""
    kept, over = folder / ".unfinished", folder / ".finished"
    shutil.rmtree(over, ignore_errors=True)  # of a run that was killed at its very end
    if kept.exists() and not resume:
        raise ValueError(f"{folder} holds edits of an interrupted run; --resume goes on with it, or delete {kept}")
    try:
        yield kept
    except KeyboardInterrupt:
        if kept.exists():
            err.print("interrupted; the batches that are finished are kept. The same command with --resume goes on.")
        raise
    if kept.exists():
        shutil.rmtree(kept.rename(over))  # renamed first, so that there are always all batches or none


@app.command()
def show(
    folder: Folder,
    limit: Annotated[int, typer.Option(min=0, help="Edits to list, at most.")] = 20,
) -> None:
    """What a folder holds: its facts and how their edits went."""
    with _explained():
        from .editors._packed import Packed
        from .editors._saving import read_manifest, read_tensors

        manifest = read_manifest(folder)
        tensors = [t for t in read_tensors(folder, manifest).values() if isinstance(t, Packed) or t.is_floating_point()]
        filled = sum(len(t.values) if isinstance(t, Packed) else int(t.count_nonzero()) for t in tensors)
        numbers = sum(t.size if isinstance(t, Packed) else t.numel() for t in tensors)
        table = Table(title=f"{manifest.editor} on {manifest.model} ({manifest.dtype}), seed {manifest.seed}")
        for column in ("case", "prompt", "new answer"):
            table.add_column(column, overflow="fold")
        for column in ("steps", "loss"):
            table.add_column(column, justify="right")
        for facts, outcome in list(zip(manifest.facts, manifest.outcomes, strict=True))[:limit]:
            for fact in facts:
                loss = outcome.error or f"{outcome.loss:.3f}"
                table.add_row(*map(_plain, (fact.case_id, fact.prompt, fact.target_new, str(outcome.steps), loss)))
        out.print(table)
        share = f"{100 * filled / numbers:.1f} % of their numbers are not zero" if numbers else "no numbers"
        out.print(f"{len(manifest.facts)} edits, {_size(folder)}; {share}", markup=False)
        out.print(", ".join(f"{key}={value}" for key, value in manifest.hparams.items()), style="dim", markup=False)


@app.command()
def ask(
    folder: Folder,
    prompts: Annotated[list[str], typer.Argument(help="What the model is to continue.", show_default=False)],
    case: Case = None,
    tokens: Tokens = 20,
    model: ModelName = None,
    device: Device = "auto",
) -> None:
    """Continue prompts without and with the edits, side by side.

    Of several edits, each prompt gets the one that it is about, or none.

    loredit ask my-edits "The capital of France is" "Water is"
    """
    with _explained():
        table = Table("prompt", "without", "with", "edit")
        for row in _Asked(folder, case, tokens, model, device)(prompts):
            table.add_row(*map(_plain, row))
        out.print(table)


@app.command()
def chat(
    folder: Folder, case: Case = None, tokens: Tokens = 40, model: ModelName = None, device: Device = "auto"
) -> None:
    """As `ask`, for line after line of input; an empty line ends it."""
    with _explained():
        asked = _Asked(folder, case, tokens, model, device)
        while line := _line():
            ((_, without, edited, edit),) = asked([line])
            out.print(f"  without  {without}\n  with     {edited}  ({edit})", markup=False, soft_wrap=True)


def _line() -> str:
    if sys.stdin.isatty():
        try:
            return input("> ").strip()
        except EOFError:
            return ""
    line = sys.stdin.readline().strip()
    if line:
        out.print(f"> {line}", markup=False, soft_wrap=True)
    return line


class _Asked:
    """Continues prompts without and with the edits of a folder."""

    def __init__(self, folder: Path, case: str | None, tokens: int, model: str | None, device: str) -> None:
        from .editors import EditStore

        loaded = _loaded(folder, model, device)
        self.model, self.tokenizer, self.tokens = loaded.model, loaded.tokenizer, tokens
        self.edits = self.store = None
        if case is None and _count(folder) > 1:
            self.store = EditStore.load(folder, loaded.model, loaded.tokenizer)
        else:
            edits = _edits(folder, loaded)
            self.edits = edits[_chosen(edits, case)]

    def __call__(self, prompts: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
        from .editors._encoding import Encoder

        encoder = Encoder(self.tokenizer, self.model.config.max_position_embeddings)
        ids = [encoder.prompt(prompt).ids for prompt in prompts]
        without = self._texts(ids, lambda rows: nullcontext())
        if self.store:
            store = self.store
            edited = self._texts(ids, lambda rows: store.on([ids[r] for r in rows]))
            used = [store.facts[e] if e >= 0 else () for e in store.route(ids)]
        else:
            assert self.edits is not None
            edits = self.edits
            edited = self._texts(ids, lambda rows: edits.on([0] * len(rows)))
            used = [edits.facts[0]] * len(ids)
        for prompt, a, b, facts in zip(prompts, without, edited, used, strict=True):
            yield prompt, a, b, ", ".join(fact.case_id for fact in facts[:3]) or "none"

    def _texts(self, ids: Sequence[Sequence[int]], attach: Any) -> list[str]:
        from .editors._generation import continuations

        texts = continuations(self.model, ids, tokens=self.tokens, attach=attach)
        decoded = self.tokenizer.batch_decode(texts, skip_special_tokens=True)
        return [text.strip().partition("\n")[0] for text in decoded]


def _count(folder: Path) -> int:
    from .editors._saving import read_manifest

    return len(read_manifest(folder).facts)


@app.command()
def merge(
    folder: Folder,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the model; it must not exist yet.")],
    case: Case = None,
    model: ModelName = None,
    device: Device = "auto",
) -> None:
    """Write a model with an edit in its weights, for AutoModelForCausalLM.from_pretrained; the tokenizer too."""
    with _explained(), _new_folder(target) as made:
        loaded = _loaded(folder, model, device)
        edits = _edits(folder, loaded)
        edits.merged(_chosen(edits, case)).save_pretrained(made)
        loaded.tokenizer.save_pretrained(made)
    out.print(f"{target}: {_size(target)}", markup=False)


@app.command()
def export(
    folder: Folder,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the adapter; it must not exist yet.")],
    to: Annotated[Form, typer.Option(help="peft: a folder for PeftModel.from_pretrained.")] = Form.peft,
    case: Case = None,
    model: ModelName = None,
    device: Device = "auto",
) -> None:
    """Write an edit as an adapter of another library."""
    with _explained(), _new_folder(target) as made:
        edits = _edits(folder, _loaded(folder, model, device))
        edits.to_peft(_chosen(edits, case), made)
    out.print(f"{target}: {_size(target)}", markup=False)


@app.command()
def remove(
    folder: Folder, case: Annotated[str, typer.Argument(metavar="CASE", help="Case id of the fact to undo.")]
) -> None:
    """Undo one fact of a folder with an edit for each fact; the others stay as they are."""
    with _explained():
        from .editors._saving import read_manifest
        from .editors._saving import remove as removed

        removed(folder, case)
        out.print(f"{case} is undone; {len(read_manifest(folder).facts)} edits in {folder}", markup=False)


app.command("classify", help=CLASSIFY)(classify)


def _loaded(folder: Path, model: str | None, device: str) -> Any:
    """The model that a folder's edits are of, in the dtype that they were trained in."""
    from .editors import load_model
    from .editors._saving import read_manifest

    manifest = read_manifest(folder)
    return load_model(model or manifest.model, device=device, dtype=manifest.dtype)


def _edits(folder: Path, loaded: Any) -> Edits:
    from .editors import Edits

    return Edits.load(folder, loaded.model, loaded.tokenizer)


def _chosen(edits: Edits, case: str | None) -> int:
    """The edit that is meant."""
    from .editors._saving import edit_of

    if case is not None:
        return edit_of(edits.facts, case)
    if len(edits) > 1:
        cases = [fact.case_id for facts in edits.facts for fact in facts]
        shown = ", ".join(cases[:20]) + (f" and {len(cases) - 20} more" if len(cases) > 20 else "")
        raise ValueError(f"there are {len(edits)} edits; name one of them with --case: {shown}")
    return 0


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder to write to, which becomes ``target`` when all went well."""
    if target.exists():
        raise ValueError(f"{target} exists already; name a folder that does not")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        made = Path(temporary) / target.name
        made.mkdir()
        yield made
        made.rename(target)


def _size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.1f} MB"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
