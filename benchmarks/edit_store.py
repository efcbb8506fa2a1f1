"""Many edits in one store: where prompts are routed to, what the scores are through the router, and what it costs.

    loredit apply my-edits --data ZsRE-test-1001.json --limit 1000
    python benchmarks/edit_store.py --edits my-edits --data ZsRE-test-1001.json --calibrate 300

The routing is calibrated on the first facts (``--calibrate``); the others' numbers stand beside those of all.
``--index`` N routes among the first N facts of the data although not all have edits; a prompt that goes to another is
computed unedited.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from loredit.engine.model.encoding import Batch, Encoder, padded
from loredit.engine.model.passes import frozen, logits_at
from loredit.store.store import _matches
from tqdm import tqdm

import loredit
from loredit.data import Fact
from loredit.editors import Edits, EditStore, _store

Row = tuple[int, str, str, str]  # fact, kind of probe, prompt, answer


def probes(facts: Sequence[Fact]) -> list[Row]:
    rows: list[Row] = []
    for i, fact in enumerate(facts):
        rows.append((i, "success", fact.prompt, fact.target_new))
        rows += [(i, "generalization", prompt, fact.target_new) for prompt in fact.rephrase_prompts[:1]]
        rows += [(i, "locality", p.prompt, p.answers[0]) for group in fact.locality.values() for p in group]
    return rows


def scores(store: EditStore, rows: Sequence[Row]) -> list[float]:
    """The share of each probe's answer tokens that are right, or for locality as the unedited model has them."""
    encoder = Encoder(store.tokenizer, store.model.config.max_position_embeddings)
    encoded = [encoder.answered(prompt, answer) for _, _, prompt, answer in rows]
    order = sorted(range(len(rows)), key=lambda i: len(encoded[i].ids))
    out = [0.0] * len(rows)
    with frozen(store.model), torch.no_grad():
        for begin in tqdm(range(0, len(order), 64), unit="batch"):
            chunk = order[begin : begin + 64]
            batch = Batch.of([encoded[i] for i in chunk], store.model.device)
            with store.on([rows[i][2] for i in chunk]):
                seen = logits_at(store.model, batch.ids, batch.at).argmax(-1)
            wanted = batch.labels
            if any(rows[i][1] == "locality" for i in chunk):
                base = logits_at(store.model, batch.ids, batch.at).argmax(-1)
                local = torch.tensor([rows[i][1] == "locality" for i in chunk])[batch.at[0]]
                wanted = torch.where(local, base, wanted)
            right = batch.table((seen == wanted).float()).sum(1) / batch.table.counts
            for i, share in zip(chunk, right.tolist(), strict=True):
                out[i] = share
    return out


def mean(rows: Sequence[Row], values: Sequence[float], kind: str, facts: range) -> float:
    """Over the probes of a fact, then over facts, in per cent."""
    of: dict[int, list[float]] = {}
    for (i, k, _, _), value in zip(rows, values, strict=True):
        if k == kind and i in facts:
            of.setdefault(i, []).append(value)
    return 100 * sum(sum(v) / len(v) for v in of.values()) / len(of)


class Indexed(EditStore):
    """Routes among facts of which only the first have edits."""

    def __init__(self, store: EditStore, facts: Sequence[Fact]) -> None:
        super().__init__(store.model, store.tokenizer, calibration=(store.routing, store._whitening))
        self._frame, self._tensors, self._outcomes = store._frame, store._tensors, store._outcomes
        self.edited = len(store)
        self._facts = [(fact,) for fact in facts]
        self._owner = torch.arange(len(facts))
        self._states = self._embedded([fact.prompt for fact in facts])
        self._index()

    def among_all(self, prompts: Sequence[str]) -> list[int]:
        return super().route(prompts)

    def route(self, prompts: Sequence[str] | Sequence[Sequence[int]]) -> list[int]:
        return [edit if edit < self.edited else -1 for edit in super().route(prompts)]


def routing(store: Indexed, facts: Sequence[Fact], rows: Sequence[Row]) -> None:
    went = store.among_all([prompt for _, _, prompt, _ in rows])
    print(f"routing {store.routing}")
    print("| probes | to their own fact | to another with the same answer | to another | to none |")
    print("|---|---|---|---|---|")
    for kind in ("success", "generalization", "locality"):
        each = [(i, e) for (i, k, _, _), e in zip(rows, went, strict=True) if k == kind]
        own = sum(i == e for i, e in each)
        same = sum(i != e >= 0 and facts[i].target_new == facts[e].target_new for i, e in each)
        none = sum(e < 0 for _, e in each)
        counts = (own, same, len(each) - own - same - none, none)
        print(f"| {kind} | " + " | ".join(f"{100 * n / len(each):.1f} %" for n in counts) + " |")


def median(seconds: Iterable[float]) -> float:
    return sorted(seconds)[len(sorted(seconds)) // 2]


def timed(store: EditStore, prompts: Sequence[str], rounds: int = 7) -> None:
    """The median time of a forward pass of prompts: unedited, with one edit, and through the router."""
    edits = store.edits()[0]
    print("| rows | unedited | one edit | store, routing included | more than one edit | routing alone |")
    print("|---|---|---|---|---|---|")
    for n in (1, 8, 32):
        some = list(prompts[:n])
        ids, mask = padded([store.tokenizer(p)["input_ids"] for p in some], store.model.device)
        took: dict[str, list[float]] = {"none": [], "one": [], "store": [], "route": []}
        with frozen(store.model), torch.no_grad():
            for _ in range(rounds):
                for name in took:
                    begun = time.perf_counter()
                    if name == "route":
                        store.route(some)
                    else:
                        context = {"none": nullcontext(), "one": edits.on([0] * n), "store": store.on(some)}[name]
                        with context:
                            store.model(input_ids=ids, attention_mask=mask, use_cache=False)
                    took[name].append(time.perf_counter() - begun)
        none, one, through, route = (1000 * median(took[name]) for name in took)
        more = 100 * (through / one - 1)
        print(f"| {n} | {none:.0f} ms | {one:.0f} ms | {through:.0f} ms | {more:+.0f} % | {route:.0f} ms |")


def search(n: int, width: int) -> None:
    keys = torch.nn.functional.normalize(torch.randn(n, 2, width), dim=-1)
    for prompts in (1, 32):
        took = []
        for _ in range(7):
            begun = time.perf_counter()
            _matches(keys[:prompts], keys, 0.5)
            took.append(time.perf_counter() - begun)
        print(f"search among {n} facts: {1000 * median(took):.1f} ms for {prompts} prompts, {keys.nbytes / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--edits", type=Path, required=True, help="what `loredit apply` wrote for the first facts of --data"
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibrate", type=int, default=300, help="facts that the routing is calibrated on")
    parser.add_argument("--index", type=int, default=0, help="facts to route among, if more than have edits")
    parser.add_argument("--last", type=float, help="fix the weight of the last token's state")
    parser.add_argument("--question-marks", action="store_true", help="end every probe with a question mark")
    parser.add_argument("--only", choices=["routing", "scores", "time"], help="one part of the report alone")
    args = parser.parse_args()
    loaded = loredit.load_model("smollm2-135m")
    edited = EditStore(loaded.model, loaded.tokenizer)
    edited.add(Edits.load(args.edits, loaded.model, loaded.tokenizer))
    indexed = loredit.load_facts(args.data).facts[: max(len(edited), args.index)]
    facts = indexed[: len(edited)]
    if [fact.case_id for fact in facts] != edited.case_ids:
        raise SystemExit(f"error: {args.edits} does not hold the edits of the first {len(edited)} facts of {args.data}")
    file = sum(path.stat().st_size for path in args.edits.iterdir())
    print(f"{len(edited)} edits: {edited.nbytes / 1e6:.1f} MB in memory, {file / 1e6:.1f} MB in files")
    if args.last is not None:
        _store._LAST = (args.last,)
    edited.calibrate(indexed[: args.calibrate])
    store = Indexed(edited, indexed)
    if args.only in (None, "routing"):
        rows = probes(indexed)
        if args.question_marks:
            rows = [(i, kind, f"{prompt.rstrip('?')}?", answer) for i, kind, prompt, answer in rows]
        routing(store, indexed, rows)
    if args.only in (None, "scores"):
        rows = probes(facts)
        through = scores(store, rows)
        print("| | success | generalization | locality |\n|---|---|---|---|")
        for name, some in (("all", range(len(facts))), ("not calibrated on", range(args.calibrate, len(facts)))):
            if some:
                numbers = (mean(rows, through, kind, some) for kind in ("success", "generalization", "locality"))
                print(f"| {name} ({len(some)}) | " + " | ".join(f"{x:.1f}" for x in numbers) + " |")
    if args.only in (None, "time"):
        timed(edited, [fact.prompt for fact in facts])
        search(100_000, loaded.model.config.hidden_size)


if __name__ == "__main__":
    main()
