"""``loredit bench``: one editor on several benchmark sets, and one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from .. import hparams as presets
from .common import Device, Dtype, Quantize, Set, explained, out, quiet, say_failed

HELP = """
Measure an editor on several benchmark sets: what it does on one says little of the others.

\b
The samples alone; then all sets whose files are in a folder, 100 facts of each.
  loredit bench --editor lora --hparams smollm2-general.yaml --limit 20
  loredit bench --editor lora --hparams smollm2-general.yaml --data DIR

\b
Files in the folder: knowedit/ZsRE-test-1001.json, counterfact/counterfact-2000.json,
knowedit/wiki_counterfact_train-400.json, wild/zsre-2000.json,
wild/wikibigedit-2000.json, wild/qaedit-700.json,
mquake/MQuAKE-CF-3k-v2.json, rippleedits/popular.json, unke/final_data_v2.json.

Edit success, generalization, portability and locality are as of `loredit run`; PS and NS are ROME's paraphrase and
neighborhood scores and S the harmonic mean of both and the efficacy score; free: rephrasings whose free continuation
holds the new answer; chat: the same of questions in the model's chat template. All in percent, higher is better.
A set that is finished is not run again; an interrupted one goes on.
"""


def bench(
    editor: Annotated[str, typer.Option(help="Editing method, such as lora or roselora; an unknown name lists all.")],
    hparams: Annotated[str, typer.Option(help="YAML file, or a preset in hparams/<editor>/, such as smollm2.yaml.")],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the sets' files; the samples alone if not given.")
    ] = None,
    sets: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Of the sets, these; all that are there if not given.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Facts of each set, at most.")] = 100,
    offset: Annotated[int, typer.Option(min=0, help="Skip this many facts of each first.")] = 0,
    set_: Set = None,
    seed: Annotated[int, typer.Option(help="Same seed, same machine: same numbers.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the runs; results/bench-EDITOR-PRESET if not given.")
    ] = None,
) -> None:
    with explained("interrupted; what is finished is kept. The same command goes on."):
        overrides = presets.parsed(set_ or [])
        presets.settings(editor, hparams, overrides)
        quiet()

        from ..evaluation import suite

        folder = output or Path("results") / f"bench-{editor}-{Path(hparams).name.removesuffix('.yaml')}"
        results = []
        for result in suite.bench(
            editor,
            hparams,
            data,
            sets=[name.strip() for name in sets.split(",")] if sets else (),
            output=folder,
            overrides=overrides,
            limit=limit,
            offset=offset,
            seed=seed,
            device=device,
            dtype=dtype,
            quantize=quantize,
            progress=True,
        ):
            out.print(f"{result.name}: to look at, {result.folder / 'report.html'}")
            results.append(result)
        head, *lines = suite.rows(results)
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False, title=f"{editor}, {hparams}")
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", no_wrap=True, min_width=5)
    for line in lines:
        table.add_row(*line)
    out.print(table)
    say_failed([(f"{r.name}: {failure.case_id}", failure.message) for r in results for failure in r.summary.failed])
