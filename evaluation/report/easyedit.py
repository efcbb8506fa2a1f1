"""Scores in the form of EasyEdit's results, so that its users' scripts and summaries can go on from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Literal

from ..metrics import ngram_entropy, token_em, unchanged
from ..scores import FactScores, Kind, ProbeScores

_TOKEN_ACCURACY = {
    "protocol": "decoder_only_teacher_forcing",
    "scorer": "token_accuracy",
    "comparable_group": "lm.decoder_only_teacher_forcing.token_accuracy",
}
_UNCHANGED = {
    "protocol": "pre_post_argmax_token_match",
    "scorer": "token_match",
    "comparable_group": "locality.lm.pre_post_argmax_token_match",
}


def to_easyedit(scores: FactScores) -> dict[str, object]:
    """One fact's scores as an entry of the list that EasyEdit's ``BaseEditor.edit`` returns, fit for JSON.

    ``pre`` and ``post`` are the unedited and the edited model; shares are 0 .. 1, in lists::

        {"case_id": ..., "requested_rewrite": {"prompt": ..., "target_new": ..., ...},
         "pre":  {"rewrite_acc": [0.5], "rephrase_acc": [0.5], "portability": {"reasoning_acc": [0.25, 0.0]},
                  "locality": {}, "fluency": {"ngram_entropy": 5.96}, "metric_meta": {...}},
         "post": {..., "locality": {"Forgetfulness_acc": [1.0, 0.75]}, ...}}

    EasyEdit knows one rephrased prompt per fact: of several, ``rephrase_acc`` is the mean. Its lists of predicted
    tokens (``locality``'s ``*_output``) are not here.

    Args:
        scores: what was seen of a fact.

    Returns:
        The entry. A fact that could not be edited or scored has ``error``, and ``pre`` and ``post`` are empty.

    Example:
        >>> failed = FactScores(case_id="0", prompt="Water is", target_new="dry", probes=(), steps=3, loss=None,
        ...     nonzero_share=1.0, error="the loss became nan")
        >>> to_easyedit(failed)["error"]
        'the loss became nan'
    """
    entry: dict[str, object] = {"case_id": scores.case_id, "requested_rewrite": _request(scores)}
    if scores.error:
        return entry | {"error": scores.error, "pre": {}, "post": {}}
    return entry | {"pre": _phase(scores, "base"), "post": _phase(scores, "edited")}


def _request(scores: FactScores) -> dict[str, object]:
    """What was asked for, as far as scores know it."""
    request: dict[str, object] = {"prompt": scores.prompt, "target_new": scores.target_new, "ground_truth": None}
    for probe in _of(scores, "rephrase")[:1]:
        request["rephrase_prompt"] = probe.prompt
    for kind in ("portability", "locality"):
        request[kind] = {
            group: {"prompt": [p.prompt for p in probes], "ground_truth": [p.answers[0] for p in probes]}
            for group, probes in _groups(_of(scores, kind)).items()
        }
    return request


def _phase(scores: FactScores, model: Literal["base", "edited"]) -> dict[str, object]:
    def accuracies(probes: Iterable[ProbeScores]) -> list[float]:
        scored = (token_em(probe, probe.edited if model == "edited" else probe.base) for probe in probes)
        return [score for score in scored if score is not None]

    phase: dict[str, object] = {}
    meta: dict[str, object] = {}
    for kind in ("rewrite", "rephrase"):
        if probes := _of(scores, kind):
            phase[f"{kind}_acc"] = [fmean(accuracies(probes))]
            meta[kind] = {"result_key": f"{kind}_acc", **_TOKEN_ACCURACY}
    phase["locality"] = locality = dict[str, list[float]]()
    phase["portability"] = {f"{g}_acc": accuracies(ps) for g, ps in _groups(_of(scores, "portability")).items()}
    if model == "edited":
        for group, probes in _groups(_of(scores, "locality")).items():
            locality[f"{group}_acc"] = [same for p in probes if (same := unchanged(p, p.edited)) is not None]
            meta[f"locality.{group}"] = {"result_key": f"locality.{group}_acc", **_UNCHANGED}
    text = scores.edited_text if model == "edited" else scores.base_text
    if text is not None:
        phase["fluency"] = {"ngram_entropy": ngram_entropy(text)}
    return phase | {"metric_meta": meta}


def _of(scores: FactScores, kind: Kind) -> list[ProbeScores]:
    """Those of one kind that have an answer, without which EasyEdit asks nothing."""
    return [probe for probe in scores.probes if probe.kind == kind and probe.answers]


def _groups(probes: Iterable[ProbeScores]) -> Mapping[str, list[ProbeScores]]:
    groups = defaultdict(list)
    for probe in probes:
        groups[probe.group].append(probe)
    return groups
