"""EasyEdit's request dictionary, the one form that every format is brought into, and the Fact made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest

from pydantic import ValidationError

from .facts import LONGEST, BadRecord, Fact, FactError
from .messages import brief

FIELDS = (
    *("case_id", "prompt", "target_new", "subject", "ground_truth", "rephrase_prompt", "chat_prompt"),
    *("locality", "portability"),
    *("locality_prompt", "locality_ground_truth", "portability_prompt", "portability_ground_truth"),
)
"""The fields of a request that make a fact; others (EasyEdit's ``target_neg``, KnowEdit's ``cond``) are ignored."""

FLAT_GROUPS = {"locality": "neighborhood", "portability": "one_hop"}
"""The group that ``locality_prompt`` and ``portability_prompt`` go to, named as in EasyEdit's examples."""

NO_GROUND_TRUTH = "<|endoftext|>"
"""What EasyEdit writes into requests that were made without a ground truth."""

_MISSING = object()
MESSAGES = {
    "missing": "is missing",
    "string_too_short": "is empty",
    "string_too_long": f"has more than {LONGEST:,} characters",
    "string_unicode": "holds half of a character (a lone surrogate)",
    "string_pattern_mismatch": "is blank",
    "string_type": "is {}, expected text (in JSON: in quotes)",
    "dict_type": "is {}, expected groups of probes: name -> list of prompt and ground_truth",
    "model_type": "is {}, expected a probe: prompt and ground_truth",
}
"""What is said of a field by the kind of its fault; {} is what was found."""


def from_request(request: Mapping[str, object], *, case_id: str | None = None) -> Fact:
    """The fact that EasyEdit's request dictionary asks for.

    ``locality`` and ``portability`` map a group to EasyEdit's columns, ``{prompt: [p, ...], ground_truth: [a, ...]}``,
    or to KnowEdit's list of ``{prompt, ground_truth}``; flat fields (``locality_prompt``, ``locality_ground_truth``)
    do as well. ``ground_truth`` and each answer may be one text or (nested) lists of aliases, ``rephrase_prompt`` and
    ``chat_prompt`` (what a user would ask a chat model; EasyEdit has no such field) one text or a list. ``{}`` in a
    prompt stands for the subject. A probe whose answer is empty is left out.

    Args:
        request: EasyEdit's dictionary.
        case_id: for a request without one; None: one that is made of what the fact says.

    Returns:
        The fact.

    Raises:
        FactError: the request is faulty; all faults are listed.

    Example:
        >>> from_request({"prompt": "{} lies in", "subject": "France", "target_new": "Asia"}).prompt
        'France lies in'
    """
    return to_fact(request, case_id)[0]


def to_fact(request: Mapping[str, object], case_id: str | None) -> tuple[Fact, int]:
    """:func:`from_request`, and how many probes were left out because their answer is empty."""
    given = {name: value for name, value in request.items() if value is not None}
    subject = given.get("subject")

    def fill(prompt: object) -> object:
        return prompt.replace("{}", subject) if isinstance(prompt, str) and isinstance(subject, str) else prompt

    number = given.get("case_id", case_id)
    fields: dict[str, object] = {name: given[name] for name in ("prompt", "target_new", "subject") if name in given}
    if "prompt" in fields:
        fields["prompt"] = fill(fields["prompt"])
    fields["case_id"] = str(number) if type(number) is int else number
    fields["ground_truth"] = [text for text in _texts(given.get("ground_truth")) if text != NO_GROUND_TRUTH]
    fields["rephrase_prompts"] = [fill(text) for text in _texts(given.get("rephrase_prompt"))]
    fields["chat_prompts"] = [fill(text) for text in _texts(given.get("chat_prompt"))]
    probes = {kind: _groups(given, kind, fill) for kind in FLAT_GROUPS}
    answered = {kind: _answered(groups) for kind, groups in probes.items()}
    bad = [
        BadRecord("", "subject", f"is missing, and the {name} has {{}} for it")
        for name, texts in _prompts(given, probes).items()
        if "subject" not in given and any("{}" in text for text in texts if isinstance(text, str))
    ]
    try:
        fact = Fact.model_validate(fields | answered)
    except ValidationError as error:
        for fault in error.errors():
            message = MESSAGES.get(fault["type"], fault["msg"]).format(brief(fault["input"]))
            bad.append(BadRecord("", _field(fault["loc"], given), message))
    if bad:
        raise FactError("this request makes no fact:", bad)
    return fact, sum(_count(probes[kind]) - _count(answered[kind]) for kind in probes)


def _texts(value: object) -> list[object]:
    """``value`` (a text, or nested lists of texts) as a flat list in order, without blanks and repeats."""
    flat: list[object] = []
    left = [value]
    while left:  # without recursion, since a stranger's lists may be nested deeply
        item = left.pop()
        if isinstance(item, (list, tuple)):
            left += reversed(item)
        elif item is not None and str(item).strip():
            flat.append(item)
    return [*{(type(item), repr(item)): item for item in flat}.values()]


def _groups(request: Mapping[str, object], kind: str, fill: Callable[[object], object]) -> object:
    """``kind``'s probes by group, from the nested and the flat fields. What is no mapping passes, to be refused."""
    groups = request.get(kind, {})
    flat = {name: request[f"{kind}_{name}"] for name in ("prompt", "ground_truth") if f"{kind}_{name}" in request}
    if not isinstance(groups, Mapping):
        return groups
    found = {group: list(_probes(value, fill)) for group, value in groups.items() if value is not None}
    if flat:  # beside what the group of that name holds already
        found[FLAT_GROUPS[kind]] = [*found.get(FLAT_GROUPS[kind], []), *_probes(flat, fill)]
    return found


def _probes(group: object, fill: Callable[[object], object]) -> Iterator[object]:
    """A Probe's fields for each probe of a list, or of columns (a single answer is every prompt's answer)."""
    for item in group if isinstance(group, (list, tuple)) else [group]:
        if not isinstance(item, Mapping):
            yield item
            continue
        prompts, answers = item.get("prompt", _MISSING), item.get("ground_truth", _MISSING)
        if not isinstance(prompts, (list, tuple)):
            prompts, answers = [prompts], [answers]
        elif not isinstance(answers, (list, tuple)):
            answers = [answers] * len(prompts)
        for prompt, answer in zip_longest(prompts, answers, fillvalue=_MISSING):
            asked = {} if prompt is _MISSING else {"prompt": fill(prompt)}
            yield asked if answer is _MISSING else asked | {"answers": _texts(answer)}


def _answered(groups: object) -> object:
    """``groups`` without the probes that have an answer field with nothing in it, and without empty groups."""
    if not isinstance(groups, Mapping):
        return groups
    groups = {
        group: [probe for probe in probes if not isinstance(probe, dict) or probe.get("answers") != []]
        for group, probes in groups.items()
    }
    return {group: probes for group, probes in groups.items() if probes}


def _count(groups: object) -> int:
    return sum(map(len, groups.values())) if isinstance(groups, Mapping) else 0


def _field(loc: tuple[int | str, ...], request: Mapping[str, object]) -> str:
    """Where a fault is in the request: ("locality", "g", 0, "answers") -> "locality.g[0].ground_truth"."""
    names = {"answers": "ground_truth", "rephrase_prompts": "rephrase_prompt", "chat_prompts": "chat_prompt"}
    kind, *rest = (names.get(str(part), part) for part in loc)
    if rest and rest[0] == FLAT_GROUPS.get(str(kind)) and rest[0] not in _mapping(request.get(str(kind))):
        return f"{kind}_{rest[2] if len(rest) > 2 else 'prompt'}"
    return str(kind) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)


def _prompts(request: Mapping[str, object], probes: Mapping[str, object]) -> dict[str, list[object]]:
    """All texts of a request in which {} stands for the subject, by the field that they are in."""
    own = {name: _texts(request.get(name)) for name in ("prompt", "chat_prompt", "rephrase_prompt")}
    asked = {
        kind: [
            probe["prompt"]
            for group in _mapping(groups).values()
            if isinstance(group, list)
            for probe in group
            if isinstance(probe, dict) and "prompt" in probe
        ]
        for kind, groups in probes.items()
    }
    return own | asked


def _mapping(value: object) -> Mapping[object, object]:
    return value if isinstance(value, Mapping) else {}
