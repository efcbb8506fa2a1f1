"""``loredit add``, ``update`` and ``calibrate``: a folder of edits as it grows and changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import data as facts_of
from ..engine.files import locked
from .common import Device, EncoderName, Folder, ModelName, err, explained, out, printable, quiet, say_learned, size
from .unfinished import unfinished

if TYPE_CHECKING:
    from ..data import Fact
    from ..editors import Edits
    from ..engine.storage.manifest import Manifest
    from ..store.store import EditStore

Data = Annotated[str, typer.Option(help="Facts: a JSON, JSONL or CSV file, - for standard input.", show_default=False)]
Limit = Annotated[int | None, typer.Option(min=1, help="Take this many facts of the list at most.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out faulty records of the list.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run; each finished batch of edits was stored.")
]


def add(
    folder: Folder,
    data: Data,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    resume: Resume = False,
    model: ModelName = None,
    device: Device = "auto",
    encoder: EncoderName = None,
) -> None:
    """Learn more facts into a folder, with its editor and settings; the edits that it holds stay as they are.

    A fact that is there already is left out. One that gives a prompt of the folder another answer is refused: that is
    an update. A number as case id, which records without one get, is replaced by a free one where it is taken.

    loredit add my-edits --data more.json
    """
    with explained():
        listed = facts_of.load(data, skip_bad=skip_bad)  # first: what comes next imports torch

        from ..engine.storage.manifest import read_manifest

        read_manifest(folder)  # a folder that holds no edits gets no lock either
        quiet()
        with locked(folder):
            new = fresh(read_manifest(folder), listed.facts[:limit])
            if not new:
                out.print(f"nothing to add: all of these facts are in {folder} already", markup=False)
                return
            edits, store = _learned(folder, new, resume, model, device, encoder)
        _tell(folder, [str(record) for record in listed.bad], edits, len(store))


def update(
    folder: Folder,
    data: Data,
    limit: Limit = None,
    skip_bad: SkipBad = False,
    resume: Resume = False,
    model: ModelName = None,
    device: Device = "auto",
    encoder: EncoderName = None,
) -> None:
    """Learn facts anew in place of the folder's edits of the same facts; the others stay as they are.

    The same fact is one with the same prompt or, if it is no mere number, the same case id. An edit is replaced when
    the new one has been learned, and stays where that fails.

    loredit update my-edits --data corrected.json
    """
    with explained():
        listed = facts_of.load(data, skip_bad=skip_bad)

        from ..engine.storage.manifest import read_manifest

        read_manifest(folder)
        quiet()
        with locked(folder):
            new = replacing(read_manifest(folder), listed.facts[:limit])
            edits, store = _learned(folder, new, resume, model, device, encoder, replaces=True)
        _tell(folder, [str(record) for record in listed.bad], edits, len(store))


def calibrate(
    folder: Folder,
    data: Annotated[
        str | None,
        typer.Option(help="Facts with rephrasings and locality probes; else the folder's own.", show_default=False),
    ] = None,
    limit: Limit = None,
    strays: Annotated[float, typer.Option(min=0, max=1, help="Share of the probes that may get an edit.")] = 0.05,
    wrong: Annotated[float, typer.Option(min=0, max=1, help="Share of rephrasings that may get a wrong one.")] = 0.015,
    model: ModelName = None,
    device: Device = "auto",
    encoder: EncoderName = None,
) -> None:
    """Fit how prompts find their edit to facts with rephrasings and probes, and keep it in the folder.

    loredit calibrate my-edits --data like-mine.json
    """
    with explained():
        facts = None if data is None else facts_of.load(data).facts[:limit]

        from ..engine.storage.manifest import read_manifest

        read_manifest(folder)
        quiet()

        from ..session import loaded_for
        from ..store.store import EditStore

        with locked(folder):
            loaded = loaded_for(folder, model, device)
            store = EditStore.load(folder, loaded.model, loaded.tokenizer, encoder=encoder)
            found = store.calibrate(facts, strays=strays, wrong=wrong)
            store.save(folder)
        out.print(
            f"{folder}: prompts are found by {store.router.encoder.name}, from a score of {found.threshold:.3f} on",
            markup=False,
        )


def fresh(manifest: Manifest, facts: Sequence[Fact]) -> list[Fact]:
    """The facts that a folder does not hold yet, under free case ids. ValueError for those that contradict it."""
    from ..store.text import folded, plain

    held = {fact.case_id: fact for own in manifest.facts for fact in own}
    known = {folded(plain(fact.prompt)): fact for fact in held.values()}
    new: list[Fact] = []
    faults: list[str] = []
    taken = {*held, *(fact.case_id for fact in facts if not fact.case_id.isdigit())}
    number = 0
    for fact in facts:
        same = known.get(folded(plain(fact.prompt)))
        if same is not None and same.target_new == fact.target_new:
            continue
        if same is not None:
            faults.append(f"{fact.prompt!r} -> {fact.target_new!r} is {same.target_new!r} in case {same.case_id}")
        elif fact.case_id in held and not fact.case_id.isdigit():
            faults.append(f"case {fact.case_id} is there: {held[fact.case_id].prompt!r}")
        elif fact.case_id.isdigit() and fact.case_id in taken:
            while str(number) in taken:
                number += 1
            taken.add(str(number))
            new.append(fact.model_copy(update={"case_id": str(number)}))
        else:
            taken.add(fact.case_id)
            new.append(fact)
    if faults:
        told = "\n  ".join(faults[:20])
        raise ValueError(f"`loredit update` replaces an edit; {len(faults)} facts cannot be added:\n  {told}")
    return new


def replacing(manifest: Manifest, facts: Sequence[Fact]) -> list[Fact]:
    """The facts under the case ids of those that they replace. Raises ValueError where there is nothing to replace."""
    from ..engine.storage.manifest import alone
    from ..store.text import folded, plain

    held = {fact.case_id: own for own in manifest.facts for fact in own}
    known = {folded(plain(fact.prompt)): fact.case_id for own in manifest.facts for fact in own}
    new: dict[str, Fact] = {}
    faults: list[str] = []
    for fact in facts:
        by_id = fact.case_id if fact.case_id in held and not fact.case_id.isdigit() else None
        case_id = known.get(folded(plain(fact.prompt)), by_id)
        if case_id is None:
            faults.append(f"no edit of {fact.prompt!r} (case {fact.case_id}) is there")
            continue
        if case_id in new:
            faults.append(f"{fact.prompt!r} stands twice in the list")
        alone(held[case_id], case_id)
        new[case_id] = fact.model_copy(update={"case_id": case_id})
    if faults:
        told = "\n  ".join(faults[:20])
        raise ValueError(f"`loredit add` takes facts that are new; {len(faults)} facts replace nothing:\n  {told}")
    return list(new.values())


def _learned(
    folder: Path,
    facts: Sequence[Fact],
    resume: bool,
    model: str | None,
    device: str,
    encoder: str | None,
    *,
    replaces: bool = False,
) -> tuple[Edits, EditStore]:
    """Edits of the facts by the folder's own editor, in the folder."""
    from .. import editors
    from ..engine.storage.manifest import read_manifest
    from ..session import loaded_for
    from ..store.store import EditStore

    loaded = loaded_for(folder, model, device)
    method = editors.editor_of(folder, read_manifest(folder), loaded.model, loaded.tokenizer)
    with unfinished(folder, resume) as checkpoint:
        edits = method.edit_each(facts, checkpoint=checkpoint, progress=True)
        store = EditStore.load(folder, loaded.model, loaded.tokenizer, encoder=encoder)
        good = [own[0].case_id for own, o in zip(edits.facts, edits.outcomes, strict=True) if not o.error]
        if good:
            for case_id in good if replaces else ():
                store.remove(case_id)
            store.add(edits)
            store.save(folder)
    return edits, store


def _tell(folder: Path, bad: Sequence[str], edits: Edits, total: int) -> None:
    for record in bad:
        err.print(f"left out: {printable(record)}", markup=False)
    failed = [(own[0].case_id, o.error) for own, o in zip(edits.facts, edits.outcomes, strict=True) if o.error]
    for case_id, error in failed:
        err.print(printable(f"failed: {case_id}: {error}"), markup=False)
    done = len(edits) - len(failed)
    out.print(f"{done} of {len(edits)} edits made; {total} edits in {folder}, {size(folder)}", markup=False)
    say_learned(edits)
    if not done:
        raise typer.Exit(1)
