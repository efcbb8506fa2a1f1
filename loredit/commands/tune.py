"""``loredit tune``: values of a method that suit a model and facts, as a preset of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import data as facts_of
from .. import hparams as presets
from .common import Device, Dtype, Quantize, Set, explained, out, printable, quiet

if TYPE_CHECKING:
    from ..evaluation.search import Found


def tune(
    output: Annotated[Path, typer.Argument(help="The preset to write, such as my-model.yaml.", show_default=False)],
    editor: Annotated[str, typer.Option(help="Method.", show_default=False)],
    hparams: Annotated[str, typer.Option(help="YAML file, or preset of the editor, to begin with.")] = "default.yaml",
    model: Annotated[str | None, typer.Option(help="Model in place of the preset's.", show_default=False)] = None,
    data: Annotated[str, typer.Option(help="Facts with rephrasings and locality probes; as for `loredit run`.")] = (
        "samples"
    ),
    limit: Annotated[int, typer.Option(min=4, help="Edit this many facts in each trial, at most.")] = 32,
    offset: Annotated[int, typer.Option(min=0, help="Skip this many facts first.")] = 0,
    trials: Annotated[int, typer.Option(min=1, help="Sets of values to try, with those of an earlier session.")] = 40,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin no further trial after so long.", show_default=False)
    ] = None,
    set_: Set = None,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same trials.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    edits_at_once: Annotated[
        int | None, typer.Option(min=1, help="Edits trained side by side; as many as memory allows if not given.")
    ] = None,
) -> None:
    """Find a preset for any model: values around a preset's are tried, and the best compromise is written.

    Each trial edits the facts; generalization is set against locality. A hyper-parameter that is given with --set stays
    as it is. Trials are kept in a folder beside the preset, and the same command goes on with them. Do not report
    numbers on the facts that values were chosen on.

    loredit tune my-model.yaml --editor roselora --model path/to/model --data my-facts.json --minutes 30
    """
    with explained("interrupted; the trials that are finished are kept. The same command goes on."):
        if output.suffix != ".yaml":
            raise ValueError(f"a preset is a .yaml file, not {output}")
        overrides = presets.parsed(set_ or [])
        settings = presets.settings(editor, hparams, overrides | ({"model": model} if model else {}))
        loaded = facts_of.load(data)
        facts = loaded.facts[offset : offset + limit]
        quiet()

        from ..editors import find
        from ..engine.model.loading import load as load_model
        from ..engine.progress import shown
        from ..evaluation.search import search, written

        on = load_model(settings.model, device=device, dtype=dtype, quantize=quantize)
        method = find(editor)(on.model, on.tokenizer, settings, seed=seed)
        folder = output.with_suffix("")
        with shown(True, "trial") as told:
            found = search(
                method,
                facts,
                folder,
                trials=trials,
                minutes=minutes,
                fixed=overrides,
                edits_at_once=edits_at_once,
                progress=told,
            )
        written(
            found,
            method,
            output,
            {
                "Found by `loredit tune`": f"{found.trials} trials of {len(facts)} facts, seed {seed}",
                "Model": method.model_identity,
                "Facts": f"{offset + 1} to {offset + len(facts)} of {printable(loaded.source)}",
            },
        )
    _show(found)
    out.print(f"written: {printable(str(output))}; trials in {printable(str(folder))}", markup=False, soft_wrap=True)


def _show(found: Found) -> None:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, title=f"The front of {found.trials} trials"
    )
    table.add_column("")
    for heading in ("edit success", "generalization", "locality"):
        table.add_column(heading, justify="right")
    for tried in found.shown:
        names = [name for name, one in (("proposed", found.knee), ("begun with", found.preset)) if tried == one]
        numbers = (tried.edit_success, tried.generalization, tried.locality)
        table.add_row(", ".join(names), *(f"{n:.1f}" for n in numbers))
    out.print(table)
