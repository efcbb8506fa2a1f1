"""Texts as routing compares them: words without case and accents, a subject in a prompt, a chat's question."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

FUZZY = 0.8
"""Two spellings are the same name from this share of common letters on ("Trichobathra", "Trichobabra": 0.87)."""

_WORD = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"(?<=\w)['\N{RIGHT SINGLE QUOTATION MARK}]s\b", re.IGNORECASE)
_ARTICLES = frozenset({"the", "a", "an"})
_FUNCTION = frozenset(  # words that ask nothing
    re.findall(
        r"\w+",
        "a an and are as at be been being by called did do does for from had has have how in is it its name named of "
        "on or that the there this to was were what when where which who whom whose why with",
    )
)
_TURNS = {"[INST]": "user", "[/INST]": "assistant", "<<SYS>>": "system", "<</SYS>>": "user"}
_TURN = re.compile(r"\[/?INST\]|<</?SYS>>|<\|(?:user|assistant|system)\|>")
_MARK = re.compile(r"<\|[^|<>]*\|>|<(?:start|end)_of_turn>|</?s>|<(?:bos|eos|pad)>")
_ROLE = re.compile(r"(?im)^\s*(system|user|human|question|assistant|model|bot|ai|answer|q|a)\s*(?::|$)")
_ASKING = frozenset({"user", "human", "question", "q"})
_SENTENCE = re.compile(r"(?<=[.!?])['\")\]]*\s+(?=\S)|\n+")
_MOST_WORDS = 64  # of a window; what is asked stands near the end
_SENTENCES = 3  # that are looked at singly, from the end


@dataclass(frozen=True)
class Word:
    """A word of a text, folded, and where it stands."""

    text: str
    start: int
    end: int


def folded(text: str) -> str:
    """Without case and accents: "Épée" becomes "epee"."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in parts if not unicodedata.combining(c))


def words(text: str) -> list[Word]:
    """The words of a text without punctuation and possessive 's."""
    dropped = {m.start() + 1 for m in _POSSESSIVE.finditer(text)}
    return [Word(folded(m.group()), m.start(), m.end()) for m in _WORD.finditer(text) if m.start() not in dropped]


@lru_cache(maxsize=100_000)  # of each candidate, for each prompt
def name_of(subject: str) -> tuple[str, ...]:
    """A subject's words without a leading article."""
    name = tuple(word.text for word in words(subject))
    while len(name) > 1 and name[0] in _ARTICLES:
        name = name[1:]
    return name


def content(said: Sequence[Word]) -> frozenset[str]:
    """The words that carry meaning."""
    return frozenset(word.text for word in said if word.text not in _FUNCTION)


@lru_cache(maxsize=1000)  # a text is held against each of its candidates' names
def trigrams(text: str) -> frozenset[str]:
    """The runs of three letters of a name, its ends marked."""
    padded = f" {text} "
    return frozenset(padded[i : i + 3] for i in range(len(padded) - 2))


def found(name: Sequence[str], said: Sequence[Word]) -> tuple[float, tuple[int, int] | None]:
    """How surely a name is named in a text, and where.

    Args:
        name: its words, as :func:`name_of` has them.
        said: the text's words.

    Returns:
        1 for the name as it is. The share of common letters (Ratcliff and Obershelp's, of ``difflib``) for a spelling
        that reaches ``FUZZY``. Else half the share of the name's letters that stand in the text as whole words
        ("Einstein" for "Albert Einstein": 0.29), and None.

    Example:
        >>> found(name_of("The Beatles"), words("Who founded the beatles' label?"))
        (1.0, (16, 23))
    """
    n, here = len(name), [w.text for w in said]
    if not n:
        return 0.0, None
    for i in range(len(here) - n + 1):
        if here[i : i + n] == [*name]:
            return 1.0, _span(said, i, n)
    whole = "".join(name)
    marks = trigrams(whole)
    if len(marks & trigrams("".join(here))) >= 0.5 * len(marks):
        best, at = max(
            (
                (_likeness(whole, "".join(here[i : i + k])), (i, k))
                for k in (n - 1, n, n + 1)
                if k > 0
                for i in range(len(here) - k + 1)
            ),
            default=(0.0, (0, 0)),
        )
        if best >= FUZZY:
            return best, _span(said, *at)
    there = set(here)
    return 0.5 * sum(len(word) for word in name if word in there) / len(whole), None


def _span(said: Sequence[Word], first: int, count: int) -> tuple[int, int]:
    return said[first].start, said[first + count - 1].end


def _likeness(a: str, b: str) -> float:
    if 2 * min(len(a), len(b)) < FUZZY * (len(a) + len(b)):
        return 0.0
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    return matcher.ratio() if matcher.quick_ratio() >= FUZZY else 0.0


def plain(text: str) -> str:
    """A text in one line and without question marks, which tell apart some benchmarks' probes but no meanings."""
    return " ".join(text.replace("?", " ").split())


def asked(prompt: str) -> str:
    """What the user says last in a chat, or the whole prompt where it is none.

    Turns are found by the marks of chat templates (ChatML, Llama, Gemma, Mistral and those like them) and by lines that
    begin with a role ("User:", "Q:"), so that a system prompt and what the assistant is to begin with do not count.

    Example:
        >>> asked("System: Be brief.\\nUser: Who wrote Dune?\\nAssistant:")
        'Who wrote Dune?'
    """
    turned = _TURN.sub(lambda m: f"\n{_TURNS.get(m.group()) or m.group()[2:-2]}\n", prompt)
    marked = _MARK.sub("\n\n", turned)
    turns: list[tuple[str, str]] = []
    roles = list(_ROLE.finditer(marked))
    ends = [*(role.start() for role in roles[1:]), len(marked)]
    for role, end in zip(roles, ends, strict=bool(roles)):
        turns.append((role.group(1).lower(), marked[role.end() : end].strip()))
    said = [text for role, text in turns if role in _ASKING and text]
    return said[-1] if said else marked.strip()


def windows(prompt: str) -> list[str]:
    """The parts of a prompt that may be a fact's question: all of what is asked, and its last sentences singly.

    Example:
        >>> windows("Read this first. What is the capital of France? It is")
        ['Read this first. What is the capital of France It is', 'What is the capital of France It is', \
'What is the capital of France', 'Read this first.']
    """
    text = asked(prompt)
    sentences = [s for s in _SENTENCE.split(text) if s and s.strip()]
    parts = [" ".join(text.split()[-_MOST_WORDS:])]
    if len(sentences) > 1:
        parts += [" ".join(sentences[-2:]), *reversed(sentences[-_SENTENCES:])]
        parts[1:] = [s for s in parts[1:] if content(words(s))]
    return list(dict.fromkeys(plain(window) for window in parts if plain(window))) or [plain(prompt) or prompt]
