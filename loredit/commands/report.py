"""``loredit report`` and ``loredit compare``: runs to look at, alone and side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import explained, out

RunFolder = Annotated[
    Path, typer.Argument(help="Folder of a run, such as results/lora-smollm2-001.", show_default=False)
]


def report(folder: RunFolder) -> None:
    """Write a run's report.html again, from the results in its folder; also of a run that is not finished.

    loredit report results/lora-smollm2-001
    """
    with explained():
        from ..evaluation.report.html import write_report

        out.print(f"written: {write_report(folder)}", soft_wrap=True)


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs; the first is the others' measure.")],
    output: Annotated[Path, typer.Option(help="The page to write; one that is there already is replaced.")] = Path(
        "compare.html"
    ),
) -> None:
    """Put runs side by side, case by case: a table for each but the first, and a page.

    loredit compare results/lora-smollm2-001 results/roselora-smollm2-001
    """
    with explained():
        from ..evaluation.report.html import write_comparison
        from ..evaluation.report.tables import comparison_table

        if output.is_dir() or output.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--output is a page to write, such as compare.html, not {output}")
        for first, name, comparison in write_comparison(folders, output):
            out.print(comparison_table(comparison, names=(first, name)))
        out.print(f"written: {output}", soft_wrap=True)
