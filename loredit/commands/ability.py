"""``loredit ability``: what a model can do beside its facts, before and after an edit."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Case, Device, ModelName, explained, out, quiet

if TYPE_CHECKING:
    from ..evaluation.ability.metrics import Score

# \b keeps the lines of a paragraph as they are.
HELP = """
Score general ability before and after an edit: questions by the likelihood of their options, as lm-evaluation-harness
does, and the perplexity of texts.

\b
Of several edits, each question gets the one that it is about, or none; --case
names one for all of them.
  loredit ability my-edits --data DIR --tasks arc_easy,piqa --case water

\b
A model by itself (a folder that `loredit merge` wrote, or any name).
  loredit ability model-out --data DIR --limit 200

\b
Any task of lm-evaluation-harness, from the hub.
  loredit ability my-edits --harness --tasks arc_easy,winogrande --case water

Tasks from files: arc_easy, arc_challenge, hellaswag, piqa, lambada, wikitext2, me_ppl.
"""

_ALL = "arc_easy,arc_challenge,hellaswag,piqa,lambada,wikitext2,me_ppl"


def ability(
    folder: Annotated[
        str, typer.Argument(help="Folder with edits, or a model to be scored by itself.", show_default=False)
    ],
    tasks: Annotated[str, typer.Option(help="Names with commas between.")] = _ALL,
    data: Annotated[Path | None, typer.Option(help="Folder with the tasks' files.")] = None,
    case: Case = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score a sample of this many items of each task.")] = None,
    harness: Annotated[bool, typer.Option("--harness", help="By lm-evaluation-harness, data from the hub.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out faulty rows of the data.")] = False,
    model: ModelName = None,
    device: Device = "auto",
    output: Annotated[
        Path | None, typer.Option(help="JSON file that gets the scores task by task, and is gone on with.")
    ] = None,
) -> None:
    with explained():
        names = [name for name in tasks.split(",") if name]
        if not harness and data is None:
            raise ValueError(
                "name the folder with the tasks' files (--data DIR), or take them from the hub (--harness)"
            )
        quiet()

        from tqdm.auto import tqdm

        from ..data import ability as files
        from ..engine.model.identity import identity_of
        from ..engine.model.loading import load as load_model
        from ..engine.storage.manifest import MANIFEST
        from ..evaluation.ability.runs import evaluate_all
        from ..session import Session

        read = [] if harness else [files.load(name, data or "", skip_bad=skip_bad) for name in names]
        session = None
        if (Path(folder) / MANIFEST).is_file():
            session = Session(Path(folder), case=case, model=model, device=device)
        loaded = session or load_model(folder, device=device)
        if harness:
            from ..bridges.lm_eval import simple_evaluate
            from ..evaluation.ability.metrics import Score

            def by_harness(attached: AbstractContextManager[object] | None) -> dict[str, dict[str, float]]:
                return simple_evaluate(loaded.model, loaded.tokenizer, names, attached=attached, limit=limit)

            edited = session.always() if session else None  # refused at once where there are several
            before = by_harness(None)
            after = by_harness(edited) if edited else None
            found = {
                task: {
                    metric: Score(value, after[task][metric] if after else None, None, None, 0, 0, 0)
                    for metric, value in scores.items()
                    if not metric.endswith("stderr")
                }
                for task, scores in before.items()
            }
        else:
            record = {"folder": str(folder), "case": case, "model": identity_of(loaded.model)}
            with tqdm(unit="text") as bar:

                def told(task: str, done: int, total: int) -> None:
                    if bar.desc != f"{task}: ":
                        bar.reset(total)
                        bar.set_description(task)
                    bar.update(done)

                found = evaluate_all(
                    loaded.model,
                    loaded.tokenizer,
                    read,
                    edited=session.on if session else None,
                    limit=limit,
                    reserved=session.positions if session else 0,
                    record=record,
                    output=output,
                    progress=told,
                )
    _show(found)


def _show(found: dict[str, dict[str, Score]]) -> None:
    from rich.table import Table

    table = Table("task", "metric", "before", "after", "difference", "lost", "won", "items")
    for task, scores in found.items():
        for metric, score in scores.items():
            after, difference = "", ""
            if score.after is not None:
                after, difference = f"{score.after:.4f}", f"{score.after - score.before:+.4f}"
            if score.low is not None:
                difference += f" [{score.low:.4f}, {score.high:.4f}]"
            counts = [str(n) if score.items else "" for n in (score.lost, score.won, score.items)]
            table.add_row(task, metric, f"{score.before:.4f}", after, difference.strip(), *counts)
    out.print(table)
