"""Observations made by hand, for what is computed and shown of them."""

from __future__ import annotations

from typing import Any

from loredit.evaluation.metrics import Estimate, MetricSummary, Summary
from loredit.evaluation.retention import Checkpoint, checkpoint
from loredit.evaluation.scores import AnswerScore, FactScores, Perplexity, ProbeScores, Seen


def fact_scores(number: int, *, right: bool) -> FactScores:
    seen = Seen(answers=(AnswerScore(correct=(right,), log_prob=-1.0),))
    probe = ProbeScores(
        kind="rewrite", group="rewrite", prompt="p", answers=("a",), base=seen, edited=seen, same=(True,)
    )
    case = {"case_id": str(number), "prompt": "p", "target_new": "a", "probes": (probe,)}
    return FactScores(**case, steps=1, loss=0.0, nonzero_share=1.0)


def reached(n: int, edited: float | None = None) -> Checkpoint:
    """A checkpoint after n edits, of which those at the places that 3 divides are still known."""
    scores = [fact_scores(i, right=i % 3 == 0) for i in range(n)]
    return checkpoint(scores, edited and Perplexity(base=10, edited=edited, tokens=99))


def estimate(mean: float, spread: float | None = 2.0, facts: int = 30, probes: int = 60) -> Estimate:
    low, high = (None, None) if spread is None else (mean - spread, mean + spread)
    return Estimate(mean=mean, low=low, high=high, facts=facts, probes=probes)


def summary(generalization: float = 77.0, locality: float = 88.0, portability: float | None = 45.0, **more) -> Summary:
    metrics = {
        "edit_success": ("edit success", "token_em", estimate(99.0), estimate(24.0)),
        "generalization": ("generalization", "token_em", estimate(generalization), estimate(22.0)),
        "portability": ("portability", "token_em", estimate(portability or 0), estimate(20.0)),
        "locality": ("locality", "token_em", estimate(locality), None),
        "strict_locality": ("locality", "strict", estimate(-0.01, None, facts=1, probes=4), None),
    }
    if portability is None:
        del metrics["portability"]
    given = {
        "facts": 32,
        "failed": (),
        "steps": 12.5,
        "nonzero_share": 0.1,
        "metrics": {
            name: MetricSummary(label=label, mode=mode, edited=edited, base=base)
            for name, (label, mode, edited, base) in metrics.items()
        },
    }
    return Summary(**given | more)


def seen(*answers: tuple[bool, ...]) -> Seen:
    return Seen(answers=tuple(AnswerScore(correct=correct, log_prob=-1.0) for correct in answers))


def probe(
    kind: Any, group: str, base: tuple[bool, ...], edited: tuple[bool, ...], same: tuple[bool, ...]
) -> ProbeScores:
    return ProbeScores(
        kind=kind, group=group, prompt=f"{group}?", answers=("x",), base=seen(base), edited=seen(edited), same=same
    )


T, F = True, False


def fact(case_id: str, probes: tuple[ProbeScores, ...], **more: Any) -> FactScores:
    return FactScores(
        case_id=case_id, prompt="p", target_new="t", probes=probes, steps=1, loss=0.5, nonzero_share=1.0, **more
    )


FACTS = (
    fact(
        "0",
        (
            probe("rewrite", "rewrite", (F, F), (T, T), (F, F)),
            probe("rephrase", "rephrase", (F, F), (T, F), (F, F)),
            probe("rephrase", "rephrase", (F, F), (F, F), (F, F)),
            probe("locality", "Forgetfulness", (T,), (F,), (F,)),
            probe("locality", "Relation_Specificity", (T, F), (T, T), (T, F)),
            probe("locality", "Relation_Specificity", (T, F), (T, F), (T, T)),
            probe("portability", "reasoning", (F, F, F, T), (T, T, F, T), (T, T, T, T)),
        ),
        base_text="one two three four",
        edited_text="one one one one",
    ),
    fact(
        "1",
        (
            probe("rewrite", "rewrite", (F, T), (F, T), (T, T)),
            probe("locality", "Forgetfulness", (T, F, F, F), (T, F, F, F), (T, F, T, T)),
        ),
        base_text="a",
        edited_text="b b b c d",
    ),
)
