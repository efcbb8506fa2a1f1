r"""Scores of written texts against several references each, as the E2E challenge's own scripts compute them.

- ``bleu``: corpus BLEU-4, lower case, tokenised as mteval-v13a does, by sacrebleu; percent.
- ``nist``: NIST-5, lower case, of the same tokens (:func:`nist`).
- ``meteor``: METEOR 1.5 of what the Penn Treebank tokeniser makes of a text, lower case, without punctuation; percent.
- ``rouge_l``: ROUGE-L, F with beta 1.2 of the best precision and the best recall, of the same tokens; percent.
- ``cider``: CIDEr with the inverse document frequencies of these references, of the same tokens.
- ``ter``: translation edit rate against the nearest reference, by sacrebleu; percent, lower is better.
- ``rouge``: F of ROUGE-1, ROUGE-2 and ROUGE-L with stemming, against the best reference, by rouge-score; percent.

METEOR, the tokeniser, ROUGE-L and CIDEr are those of ``pycocoevalcap``, which need Java. All of them are in the extra
``generation``.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

from ...data.messages import unknown
from ...data.pairs import Item, Metric

_NGRAM = 5  # of NIST
_BETA = math.log(0.5) / math.log(1.5) ** 2  # a text of two thirds of the references' length loses half of its score

_NEEDS: dict[Metric, tuple[str, ...]] = {
    "bleu": ("sacrebleu",),
    "nist": ("sacrebleu",),
    "meteor": ("pycocoevalcap", "java"),
    "rouge_l": ("pycocoevalcap", "java"),
    "cider": ("pycocoevalcap", "java"),
    "ter": ("sacrebleu",),
    "rouge": ("rouge_score",),
}
# What the COCO tokeniser leaves out.
_PUNCTUATION = {*".?!,:;-`'", "''", "``", "--", "...", "-LRB-", "-RRB-", "-LCB-", "-RCB-"}


def check(metrics: Sequence[Metric]) -> None:
    """Refuse metrics whose programs are not here, before anything is trained. Raises ValueError naming each."""
    lacking = sorted({need for metric in metrics for need in _NEEDS[metric] if not _has(need)})
    if lacking:
        rest = [metric for metric in metrics if not {*_NEEDS[metric]} & {*lacking}]
        others = f"; without: --metrics {','.join(rest)}" if rest else ""
        java = " and Java on the PATH" if "java" in lacking else ""
        raise ValueError(
            f"these metrics need {', '.join(lacking)}: pip install 'loredit[generation]'{java} brings them{others}"
        )


def named(names: Sequence[str]) -> list[Metric]:
    """Metrics by their names. Raises ValueError for one that is not known.

    Example:
        >>> named(["bleu", "nist"])
        ['bleu', 'nist']
    """
    for name in names:
        if name not in _NEEDS:
            raise ValueError(unknown("metric", name, _NEEDS))
    return [name for name in _NEEDS if name in names]


def _has(need: str) -> bool:
    return shutil.which(need) is not None if need == "java" else find_spec(need) is not None


def scores(texts: Sequence[str], items: Sequence[Item], metrics: Sequence[Metric]) -> dict[str, float]:
    """The corpus scores of ``texts``, one for each item.

    Args:
        texts: what was written about ``items[i]``.
        items: with the references.
        metrics: which; see the module.

    Returns:
        A number for each metric by its name (three for ``rouge``).

    Raises:
        ValueError: texts and items differ in number, or a metric's program is not here.
    """
    if len(texts) != len(items):
        raise ValueError(f"{len(texts)} texts for {len(items)} items")
    check(metrics)
    references = [item.references for item in items]
    found: dict[str, float] = {}
    if coco := [metric for metric in metrics if metric in _COCO]:
        cut = _treebank([*texts, *(text for own in references for text in own)])
        mine, rest = cut[: len(texts)], iter(cut[len(texts) :])
        theirs = [[next(rest) for _ in own] for own in references]
        found = {metric: _COCO[metric](mine, theirs) for metric in coco}
    for metric in metrics:
        if metric == "rouge":
            found |= _rouge(texts, references)
        elif metric not in _COCO:
            found[metric] = _BY_TEXT[metric](texts, references)
    return found


def nist(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    r"""NIST-5 (Doddington, 2002, https://dl.acm.org/doi/10.5555/1289189.1289273), as mteval-v13a computes it.

    .. math::
        \sum_{n=1}^{5} \frac{\sum_{g \in M_n} \mathrm{info}(g)}{\sum_{g \in T_n} 1} \;
        \exp\Big(\beta \, \log^2 \min\big(1, \tfrac{|t|}{|r|}\big)\Big), \qquad
        \mathrm{info}(w_1 \dots w_n) = \log_2 \frac{\#(w_1 \dots w_{n-1})}{\#(w_1 \dots w_n)}

    T_n are the n-grams of the texts; M_n those that occur in a reference of their item, each as often as in the
    reference that has most of it, at most. # counts in all references of the corpus. :math:`|t|` and :math:`|r|` are
    the mean lengths of texts and of *all* references (not of each item's nearest or shortest); beta makes the penalty
    0.5 at two thirds.

    Example:
        >>> round(nist(["the cat sat"], [["the cat sat", "a cat sat"]]), 4)
        1.9183
    """
    counts: Counter[tuple[str, ...]] = Counter()
    cut = [([*_tokens(text)], [_tokens(text) for text in own]) for text, own in zip(texts, references, strict=True)]
    lengths = [len(tokens) for _, own in cut for tokens in own]
    counts[()] = sum(lengths)
    for _, own in cut:
        for tokens in own:
            counts.update(gram for n in range(1, _NGRAM + 1) for gram in _ngrams(tokens, n))
    total = 0.0
    for n in range(1, _NGRAM + 1):
        information, size = 0.0, 0
        for mine, own in cut:
            grams = Counter(_ngrams(mine, n))
            most: Counter[tuple[str, ...]] = Counter()
            for tokens in own:
                most |= Counter(_ngrams(tokens, n))
            information += sum(k * math.log2(counts[gram[:-1]] / counts[gram]) for gram, k in (grams & most).items())
            size += grams.total()
        total += information / size if size else 0.0
    length = fmean(len(mine) for mine, _ in cut) / fmean(lengths)
    return total * (math.exp(_BETA * math.log(min(1.0, length)) ** 2) if length else 0.0)


def _tokens(text: str) -> list[str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a  # noqa: PLC0415 - of an extra

    return str(Tokenizer13a()(text)).lower().split()


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [*zip(*(tokens[i:] for i in range(n)), strict=False)]


def _bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    from sacrebleu.metrics import BLEU  # noqa: PLC0415 - of an extra

    return float(BLEU(lowercase=True, tokenize="13a").corpus_score([*texts], _columns(references)).score)


def _ter(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    from sacrebleu.metrics import TER  # noqa: PLC0415 - of an extra

    return float(TER().corpus_score([*texts], _columns(references)).score)


def _columns(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """The first reference of each item, the second, ...; None where an item has no more."""
    return [
        [own[k] if k < len(own) else None for own in references] for k in range(max(len(own) for own in references))
    ]


def _rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415 - of an extra

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer([*kinds], use_stemmer=True)
    each = [scorer.score_multi([*own], text) for text, own in zip(texts, references, strict=True)]
    return {kind.lower(): 100 * fmean(one[kind].fmeasure for one in each) for kind in kinds}


_BY_TEXT: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], float]] = {
    "bleu": _bleu,
    "nist": nist,
    "ter": _ter,
}


# Of texts that are cut already.


def _coco() -> Path:
    spec = find_spec("pycocoevalcap")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def _java(*command: str) -> list[str]:
    # Both programs would read and write in the locale's encoding.
    return ["java", "-Dfile.encoding=UTF-8", "-XX:+UseSerialGC", "-Xmx2G", *command]


def _treebank(texts: Sequence[str]) -> list[str]:
    """Lower-case tokens without punctuation, a blank between two."""
    jar = str(next((_coco() / "tokenizer").glob("stanford-corenlp-*.jar")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts"
        path.write_text("\n".join(" ".join(text.split()) for text in texts), encoding="utf-8")
        options = ("-preserveLines", "-lowerCase", str(path))
        command = _java("-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", *options)
        run = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    lines = run.stdout.removesuffix("\n").split("\n")
    if run.returncode or len(lines) != len(texts):
        raise ValueError(f"the tokeniser made {len(lines)} lines of {len(texts)} texts: {run.stderr.strip()[:200]}")
    return [" ".join(word for word in line.split() if word not in _PUNCTUATION) for line in lines]


def _meteor(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    command = _java("-jar", str(_coco() / "meteor" / "meteor-1.5.jar"), "-", "-", "-stdio", "-l", "en", "-norm")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="utf-8") as process:
        ask, answers = process.stdin, process.stdout
        assert ask is not None
        assert answers is not None
        statistics = []
        for text, own in zip(texts, references, strict=True):  # one by one, or both pipes would be full at once
            ask.write(" ||| ".join(["SCORE", *(part.replace("|||", "") for part in (*own, text))]) + "\n")
            ask.flush()
            statistics.append(answers.readline().strip())
            if not statistics[-1]:
                raise ValueError(f"METEOR ended without an answer ({' '.join(command)})")
        ask.write(" ||| ".join(["EVAL", *statistics]) + "\n")
        ask.close()
        return 100 * float(answers.read().split()[-1])  # behind one for each text, that of all


def _rouge_l(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    from pycocoevalcap.rouge.rouge import Rouge  # noqa: PLC0415 - of an extra

    return 100 * float(Rouge().compute_score(*_numbered(texts, references))[0])


def _cider(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    from pycocoevalcap.cider.cider import Cider  # noqa: PLC0415 - of an extra

    return float(Cider().compute_score(*_numbered(texts, references))[0])


def _numbered(
    texts: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return {i: [*own] for i, own in enumerate(references)}, {i: [text] for i, text in enumerate(texts)}


_COCO: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], float]] = {
    "meteor": _meteor,
    "rouge_l": _rouge_l,
    "cider": _cider,
}
