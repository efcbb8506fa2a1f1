"""Where prompts go, measured without any edits: rephrasings, probes that must be left alone, questions in a chat.

    python benchmarks/routing.py --data ZsRE-test-1001.json --calibrate 300 --facts 1000
    python benchmarks/routing.py --data samples --folds 5

The routing is calibrated on the first facts (``--calibrate``) and measured on the others, among all; with ``--folds``
on the other folds. Question marks count for nothing: the router takes them away. Of facts that give one question
several answers the last is kept, as in a store that is updated, unless ``--contradictions`` is given. Rows stand in
``benchmarks/results/routing.json``, and one that stands there is not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import loredit
from loredit.data import Fact, Probe
from loredit.engine.files import replacing
from loredit.store.encoder import BASE, DEFAULT, SentenceEncoder, Sentences, encoder_of
from loredit.store.routing import Router, background, contradict, probes
from loredit.store.text import found, name_of, plain, words

RESULTS = Path(__file__).parent / "results" / "routing.json"
CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def measured(router: Router, facts: Sequence[Fact]) -> dict[str, dict[str, float]]:
    """Of each kind of prompt: the share that goes to its fact, to another with its answer, to a wrong one, to none."""
    again = [(fact, text) for fact in facts for text in fact.rephrase_prompts]
    alone = [(fact, text) for fact in facts for text in probes([fact])]
    others = [(fact, p.prompt) for fact in facts for g in fact.locality.values() for p in g if not restates(p, fact)]
    kinds = {
        "the fact's own prompt": [(fact, fact.prompt) for fact in facts],
        "rephrasing": again,
        "rephrasing in a chat": [(fact, CHAT.format(text)) for fact, text in again],
        "must be left alone": alone,
        "must be left alone, in a chat": [(fact, CHAT.format(text)) for fact, text in alone],
        "must be left alone, and asks something else": others,
    }
    out = {}
    for kind, asked in kinds.items():
        routes = router.route([text for _, text in asked])
        own = sum(route.fact == fact for (fact, _), route in zip(asked, routes, strict=True))
        same = sum(
            route.fact is not None and route.fact != fact and route.fact.target_new == fact.target_new
            for (fact, _), route in zip(asked, routes, strict=True)
        )
        none = sum(route.fact is None for route in routes)
        n = max(1, len(asked))
        shares = {"own": own, "same answer": same, "wrong": len(asked) - own - same - none, "none": none}
        out[kind] = {"prompts": len(asked)} | {name: round(100 * count / n, 2) for name, count in shares.items()}
    return out


def restates(probe: Probe, fact: Fact) -> bool:
    """Whether a locality probe asks what the fact answers: it names the subject, and the old answer is right."""
    truth = {plain(answer).casefold() for answer in fact.ground_truth}
    named, _ = found(name_of(fact.subject or ""), words(probe.prompt))
    return named == 1 and not truth.isdisjoint(plain(answer).casefold() for answer in probe.answers)


def folded(encoder: SentenceEncoder, facts: Sequence[Fact], folds: int, strays: float) -> dict[str, dict[str, float]]:
    """As :func:`measured`, each fold among all facts, calibrated on the others'."""
    parts = []
    for fold in range(folds):
        router = Router(encoder)
        router.add(facts)
        router.calibrate([fact for i, fact in enumerate(facts) if i % folds != fold], beside=(), strays=strays)
        parts.append(measured(router, facts[fold::folds]))
    out: dict[str, dict[str, float]] = {}
    for kind in parts[0]:
        n = sum(part[kind]["prompts"] for part in parts)
        out[kind] = {"prompts": n} | {
            name: round(sum(part[kind][name] * part[kind]["prompts"] for part in parts) / max(1, n), 2)
            for name in ("own", "same answer", "wrong", "none")
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--facts", type=int, default=1000, help="facts to route among")
    parser.add_argument(
        "--calibrate", type=int, default=300, help="facts that the routing is calibrated on; 0: samples"
    )
    parser.add_argument("--skip", type=int, default=0, help="facts of the data to leave out, from its beginning")
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--contradictions", action="store_true", help="keep facts that contradict one another")
    parser.add_argument(
        "--strays", type=float, default=0.05, help="share of the calibration's probes that may be routed"
    )
    parser.add_argument("--encoder", default=DEFAULT, help="short name, hub id or folder; base: SmolLM2's own states")
    parser.add_argument("--again", action="store_true", help="measure a row that stands in the results already")
    args = parser.parse_args()
    keys = ("skip", "facts", "calibrate", "folds", "contradictions", "strays", "encoder")
    name = json.dumps({"data": Path(args.data).name} | {key: getattr(args, key) for key in keys})
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if name not in rows or args.again:
        row = measure(args)
        rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        rows[name] = row
        with replacing(RESULTS) as path:
            path.write_text(json.dumps(rows, indent=1) + "\n")
    print(name, rows[name].get("calibration", ""))
    print("| prompts | n | to their own fact | to another with the same answer | wrong | to none |")
    print("|---|---|---|---|---|---|")
    for kind, row in rows[name]["shares"].items():
        shares = " | ".join(f"{row[key]:.1f} %" for key in ("own", "same answer", "wrong", "none"))
        print(f"| {kind} | {row['prompts']:.0f} | {shares} |")


def measure(args: argparse.Namespace) -> dict[str, object]:
    """The row of the results that the arguments ask for."""
    facts = loredit.load_facts(args.data).facts[args.skip : args.skip + args.facts]
    ahead = {fact.case_id for fact in facts[: args.calibrate]}
    if not args.contradictions:
        facts = [f for i, f in enumerate(facts) if not any(contradict(f, later) for later in facts[i + 1 :])]
    if args.encoder in BASE:
        loaded = loredit.load_model("smollm2-135m")
        encoder = encoder_of(args.encoder, loaded.model, loaded.tokenizer, background())
    else:
        encoder = Sentences(args.encoder)
    if args.folds:
        return {"shares": folded(encoder, facts, args.folds, args.strays)}
    router = Router(encoder)
    router.add(facts)
    if args.calibrate:
        router.calibrate([fact for fact in facts if fact.case_id in ahead], strays=args.strays)
    others = [fact for fact in facts if fact.case_id not in ahead]
    return {"shares": measured(router, others), "calibration": router.calibration.model_dump(exclude={"wording"})}


if __name__ == "__main__":
    main()
