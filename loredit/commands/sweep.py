"""``loredit sweep``: a grid of runs, spread over workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Gpus, Ray, Workers, explained, out, printable, quiet, spread

HELP = """
Run a grid of editors, presets, values, seeds and facts, and put the runs side by side.

The file names what all runs share, and grids; each list in a grid means each of its values, with each of the others'.

\b
  data: ZsRE-test.json
  limit: 100
  runs:
    - editor: [lora, roselora]
      hparams: smollm2
      seed: [0, 1, 2]
    - editor: lora
      hparams: smollm2
      set: {lr: [1.0e-3, 3.0e-3], layers: [20-24, 0.5-0.7]}

\b
  loredit sweep sweep.yaml --workers 4
  loredit sweep sweep.yaml --ray auto --resume

Keys are editor, hparams, set, model, data, limit, offset, mode, chunk, seed, measures, fluency, device, dtype,
quantize, edits_at_once. Each run is one worker's; it appears in the folder when it is finished. At the end stand a
table, a figure and a page with the differences fact by fact.
"""


def sweep(
    file: Annotated[Path, typer.Argument(help="The grid, a YAML file.", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="Folder of all runs; results/NAME if not given.")] = None,
    workers: Workers = None,
    ray: Ray = None,
    gpus_per_worker: Gpus = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep; finished runs stay.")] = False,
) -> None:
    with explained("interrupted; the runs that are finished are kept. The same command with --resume goes on."):
        quiet()

        from ..evaluation.report.tables import runs_table
        from ..evaluation.sweep import read_sweep
        from ..evaluation.sweep import sweep as run_sweep

        read_sweep(file)  # before workers are begun
        folder = output or Path("results") / file.stem
        with spread(1 if workers is None and ray is None else workers, ray, gpus_per_worker) as several:
            assert several is not None, "one at least"
            swept = run_sweep(file, folder, several, resume=resume, progress=True)
    out.print(runs_table(swept.summaries))
    for path in (swept.figure, *swept.comparisons):
        if path is not None:
            out.print(f"written: {printable(str(path))}", markup=False, soft_wrap=True)
    out.print(f"runs in {printable(str(folder))}", markup=False, soft_wrap=True)
