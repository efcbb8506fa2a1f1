"""Many edits in one store: what the scores are through the router, and what it costs.

    loredit apply my-edits --data ZsRE-test-1001.json --limit 1000
    python benchmarks/edit_store.py --edits my-edits --data ZsRE-test-1001.json --calibrate 300

The routing is calibrated on the first facts (``--calibrate``); the others' numbers stand beside those of all. Where
prompts go, without any edits, is benchmarks/routing.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import loredit
from loredit.data import Fact
from loredit.engine.model.encoding import Batch, Encoder, padded
from loredit.engine.model.generation import continuations
from loredit.engine.model.passes import frozen, logits_at
from loredit.evaluation.metrics import normalise, says
from loredit.evaluation.scoring import natural
from loredit.store.encoder import DEFAULT
from loredit.store.nearest import EXACT, Nearest
from loredit.store.store import EditStore

TOKENS = 16  # of a free continuation
Row = tuple[int, str, str, str]  # fact, kind of probe, prompt, answer


def probes(facts: Sequence[Fact]) -> list[Row]:
    """Each fact's prompt, first rephrasing, and at most two locality probes of each kind."""
    rows: list[Row] = []
    for i, fact in enumerate(facts):
        rows.append((i, "success", fact.prompt, fact.target_new))
        rows += [(i, "generalization", prompt, fact.target_new) for prompt in fact.rephrase_prompts[:1]]
        rows += [(i, "locality", p.prompt, p.answers[0]) for group in fact.locality.values() for p in group[:2]]
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


def written(store: EditStore, rows: Sequence[Row]) -> list[float]:
    """1 where the free continuation of a probe says the new answer, or for locality what the unedited model says."""
    encoder = Encoder(store.tokenizer, store.model.config.max_position_embeddings)
    prompts = [encoder.prompt(prompt).ids for _, _, prompt, _ in rows]
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
    ends = {store.tokenizer.eos_token_id, *store.tokenizer("\n")["input_ids"]}
    out = [0.0] * len(rows)
    for begin in tqdm(range(0, len(order), 64), unit="batch"):
        chunk = order[begin : begin + 64]
        edits = [route.edit for route in store.route([rows[i][2] for i in chunk])]
        local = [i for i in chunk if rows[i][1] == "locality"]
        ids = continuations(  # with the unedited model's in one batch: the same rounding
            store.model,
            [prompts[i] for i in (*chunk, *local)],
            tokens=TOKENS,
            attach=partial(_attached, store, [*edits, *[-1] * len(local)]),
            stop=lambda _, token: token in ends,
        )
        texts = store.tokenizer.batch_decode(ids, skip_special_tokens=True)
        said = [natural(text, rows[i][3].count(".")) for i, text in zip((*chunk, *local), texts, strict=True)]
        kept = dict(zip(local, said[len(chunk) :], strict=True))
        for i, text in zip(chunk, said, strict=False):
            out[i] = float(normalise(text) == normalise(kept[i]) if i in kept else says(text, rows[i][3]))
    return out


def _attached(store: EditStore, edits: Sequence[int], rows: Sequence[int]) -> AbstractContextManager[None]:
    return store.with_edits([edits[row] for row in rows])


def mean(rows: Sequence[Row], values: Sequence[float], kind: str, facts: range) -> float:
    """Over the probes of a fact, then over facts, in per cent."""
    of: dict[int, list[float]] = {}
    for (i, k, _, _), value in zip(rows, values, strict=True):
        if k == kind and i in facts:
            of.setdefault(i, []).append(value)
    return 100 * sum(sum(v) / len(v) for v in of.values()) / len(of)


def median(seconds: Iterable[float]) -> float:
    return sorted(seconds)[len(sorted(seconds)) // 2]


def timed(store: EditStore, prompts: Sequence[str], rounds: int = 7) -> None:
    """The median processor time of a forward pass of prompts: unedited, with one edit, and through the router.

    Unlike the time that passes, it is much the same on a busy machine.
    """
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
                    begun = time.process_time()
                    if name == "route":
                        store.route(some)
                    else:
                        context = {"none": nullcontext(), "one": edits.on([0] * n), "store": store.on(some)}[name]
                        with context:
                            store.model(input_ids=ids, attention_mask=mask, use_cache=False)
                    took[name].append(time.process_time() - begun)
        none, one, through, route = (1000 * median(took[name]) for name in took)
        more = 100 * (through / one - 1)
        print(f"| {n} | {none:.0f} ms | {one:.0f} ms | {through:.0f} ms | {more:+.0f} % | {route:.0f} ms |")


def search(n: int, width: int) -> None:
    """The eight facts nearest to a prompt, and to each of 32, among n whose embeddings lie in groups of twenty."""
    topics = torch.randn(n // 20, width)[torch.randint(n // 20, (n,))]
    facts = torch.nn.functional.normalize(topics + 0.7 * torch.randn(n, width), dim=1)
    prompts = torch.nn.functional.normalize(facts[:32] + 0.03 * torch.randn(32, width), dim=1)
    nearest = Nearest(width)
    nearest.add(facts)
    begun = time.perf_counter()
    nearest(prompts, 8)
    print(f"{n} facts, {facts.nbytes / 1e6:.0f} MB; the first search {time.perf_counter() - begun:.1f} s")
    exact, found = (prompts @ facts.T).topk(8, dim=1).indices, nearest(prompts, 8)
    first = (found[:, :1] == exact[:, :1]).float().mean()
    shared = (found[:, :, None] == exact[:, None]).any(1).float().mean()
    for some in (prompts[:1], prompts):
        ways = {"by one product": lambda q: (q @ facts.T).topk(8, dim=1), "as a store does it": lambda q: nearest(q, 8)}
        for way, searched in ways.items():
            took = []
            for _ in range(5):
                begun = time.perf_counter()
                searched(some)
                took.append(time.perf_counter() - begun)
            print(f"  {len(some)} prompts, {way}: {1000 * median(took):.1f} ms")
    print(f"  {100 * first:.0f} % of the nearest are found, {100 * shared:.0f} % of the eight nearest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--edits", type=Path, required=True, help="what `loredit apply` wrote for the first facts of --data"
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibrate", type=int, default=300, help="facts that the routing is calibrated on")
    parser.add_argument("--encoder", default=DEFAULT, help="short name, hub id or folder; base: the model's own states")
    parser.add_argument("--only", choices=["scores", "time"], help="one part of the report alone")
    args = parser.parse_args()
    loaded = loredit.load_model("smollm2-135m")
    store = EditStore(loaded.model, loaded.tokenizer, encoder=args.encoder, calibrates=False)
    store.add(loredit.load_edits(args.edits, loaded.model, loaded.tokenizer))
    facts = loredit.load_facts(args.data).facts[: len(store)]
    if [fact.case_id for fact in facts] != store.case_ids:
        raise SystemExit(f"error: {args.edits} does not hold the edits of the first {len(store)} facts of {args.data}")
    file = sum(path.stat().st_size for path in args.edits.iterdir())
    print(f"{len(store)} edits: {store.nbytes / 1e6:.1f} MB in memory, {file / 1e6:.1f} MB in files")
    if args.only in (None, "scores"):
        store.calibrate(facts[: args.calibrate])
        rows = probes(facts)
        print("| | success | generalization | locality |\n|---|---|---|---|")
        for how, measure in (("token_em", scores), ("written freely", written)):
            through = measure(store, rows)
            for name, some in (("all", range(len(facts))), ("not calibrated on", range(args.calibrate, len(facts)))):
                if some:
                    numbers = (mean(rows, through, kind, some) for kind in ("success", "generalization", "locality"))
                    print(f"| {how}, {name} ({len(some)}) | " + " | ".join(f"{x:.1f}" for x in numbers) + " |")
    if args.only in (None, "time"):
        timed(store, [fact.prompt for fact in facts])
        for n in (EXACT, 1_000_000):
            search(n, store.router.encoder.width)


if __name__ == "__main__":
    main()
