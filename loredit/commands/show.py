"""``loredit show``: what a folder holds."""

from __future__ import annotations

from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .common import Folder, explained, out, size

if TYPE_CHECKING:
    from pathlib import Path

    from ..data import Fact
    from ..engine.outcome import Outcome
    from ..engine.storage.manifest import Manifest

_SAID = {True: "yes", False: "no", None: "?"}


def show(
    folder: Folder,
    limit: Annotated[int, typer.Option(min=0, help="Edits to list, at most.")] = 20,
    fact: Annotated[
        str | None, typer.Option("--fact", help="Everything about one fact, by its case id, subject or words of it.")
    ] = None,
) -> None:
    """What a folder holds: its facts, how their edits went, and whether they were learned."""
    with explained():
        from ..engine.storage.manifest import STORE, read_both
        from ..engine.storage.packed import nonzero_share

        manifest, tensors = read_both(folder)
        if fact is not None:
            for edit, index in _named(manifest, fact):
                _one(manifest, edit, index)
            return
        stored = {n: t for n, t in tensors.items() if not n.startswith(STORE)}
        table = Table(title=f"{manifest.editor} on {manifest.model} ({manifest.precision}), seed {manifest.seed}")
        for column in ("case", "prompt", "new answer"):
            table.add_column(column, overflow="fold")
        table.add_column("learned")
        for column in ("steps", "loss"):
            table.add_column(column, justify="right")
        for facts, outcome in list(zip(manifest.facts, manifest.outcomes, strict=True))[:limit]:
            for i, own in enumerate(facts):
                texts = (_brief(text) for text in (own.case_id, own.prompt, own.target_new))
                table.add_row(*texts, *_went(manifest, outcome, i))
        out.print(table)
        share = f"{100 * nonzero_share(stored.values()):.1f} % of their numbers are not zero"
        out.print(f"{len(manifest.facts)} edits, {size(folder)}; {share}")
        if manifest.routing:
            out.print(_routing(folder, manifest))
        settings = ", ".join(f"{key}={value}" for key, value in manifest.hparams.items())
        out.print(settings, style="dim")


def _brief(text: str) -> str:
    return shorten(text, 160, placeholder=" …")  # --fact shows the whole


def _went(manifest: Manifest, outcome: Outcome, fact: int) -> tuple[str, str, str]:
    """Learned or not, steps, loss or what went wrong."""
    loss = outcome.error or outcome.lost.get(fact) or ("" if outcome.loss is None else f"{outcome.loss:.3f}")
    return _SAID[outcome.learned(fact)], str(outcome.steps), loss


def _routing(folder: Path, manifest: Manifest) -> str:
    from ..store.calibration import routing_of

    routing = routing_of(folder, manifest)
    if routing is None:
        return "prompts are found by an index of an earlier release, which is made anew when it is used"
    fitted = f"{routing.fitted_to} of these facts" if routing.fitted_to else "the samples or facts that were named"
    names = ("subject", "relation", "whole prompt", "wording")
    weights = ", ".join(f"{n} {w:.1f}" for n, w in zip(names, routing.calibration.named[1:], strict=True))
    return (
        f"prompts are found by {routing.encoder}, from a score of {routing.calibration.threshold:.3f} on; "
        f"calibrated on {fitted}; weights: {weights}"
    )


def _named(manifest: Manifest, name: str) -> list[tuple[int, int]]:
    """The facts that are meant, as edit and index in it: by case id, else by subject, else by words of the prompt."""
    from ..data.messages import listed
    from ..store.text import folded

    every = [(e, i) for e, facts in enumerate(manifest.facts) for i in range(len(facts))]
    wanted = folded(name)

    def those(says: str) -> list[tuple[int, int]]:
        return [(e, i) for e, i in every if _says(manifest.facts[e][i], says, wanted)]

    for way in ("case", "subject", "prompt"):
        if found := those(way):
            return found
    ids = [fact.case_id for facts in manifest.facts for fact in facts]
    raise ValueError(f"there is no fact {name!r}; there are: {listed(ids)}")


def _says(fact: Fact, way: str, wanted: str) -> bool:
    from ..store.text import folded

    if way == "prompt":
        return wanted in folded(fact.prompt)
    return wanted == folded(fact.case_id if way == "case" else fact.subject or "")


def _one(manifest: Manifest, edit: int, index: int) -> None:
    fact, outcome = manifest.facts[edit][index], manifest.outcomes[edit]
    table = Table(title=fact.case_id, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    learned, steps, loss = _went(manifest, outcome, index)
    others = [other.case_id for other in manifest.facts[edit] if other != fact]
    rows = [
        ("prompt", fact.prompt),
        ("new answer", fact.target_new),
        ("before", ", ".join(fact.ground_truth)),
        ("subject", fact.subject or ""),
        *(("rephrasing", text) for text in fact.rephrase_prompts),
        *(
            (f"{what}, {kind}", f"{probe.prompt} -> {' | '.join(probe.answers)}")
            for what, groups in (("leave alone", fact.locality), ("follows", fact.portability))
            for kind, group in groups.items()
            for probe in group
        ),
        ("learned", learned),
        ("steps", steps),
        ("loss", loss),
        ("edit", f"{edit + 1} of {len(manifest.facts)}" + (f", with {', '.join(others[:5])}" if others else "")),
    ]
    for name, value in rows:
        if value:
            table.add_row(name, value)
    out.print(table)
