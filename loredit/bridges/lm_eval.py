"""EleutherAI's lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness) on a model with edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.ability import AbilityTask


class HarnessError(ValueError):
    """The harness is not installed, or cannot run what it was asked for."""


def simple_evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str | Mapping[str, object]],
    *,
    attached: AbstractContextManager[object] | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    **more: object,
) -> dict[str, dict[str, float]]:
    """``lm_eval.simple_evaluate`` on a model, with edits attached to it or without.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        tasks: names that the harness knows (it takes their data from the hub), or tasks of :func:`offline`.
        attached: what is attached meanwhile, such as ``edits.on(0)``; None: the model as it is.
        limit: the first so many items of each task; None: all.
        batch_size: rows of a pass.
        **more: further arguments of ``lm_eval.simple_evaluate``.

    Returns:
        By task, the harness's metrics by their names, such as "acc" and "acc_stderr".

    Raises:
        HarnessError: it is not installed, or a task is not to be had.

    Example:
        >>> with_edit = simple_evaluate(model, tokenizer, ["arc_easy"], attached=edits.on(0))  # doctest: +SKIP
    """
    try:
        import lm_eval  # noqa: PLC0415 - of an extra, and slow to import
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise HarnessError(f"{error}; pip install 'loredit[ability]' brings it") from None
    harness = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
    named = [task if isinstance(task, str) else dict(task) for task in tasks]
    try:
        with attached or nullcontext():
            found = lm_eval.simple_evaluate(
                model=harness, tasks=named, limit=limit, bootstrap_iters=0, log_samples=False, **more
            )
    except Exception as error:  # the hub client, the data sets' readers and the harness raise whatever they like
        raise HarnessError(f"lm-evaluation-harness: {type(error).__name__}: {error}") from error
    return {
        task: {name.removesuffix(",none"): value for name, value in scores.items() if isinstance(value, float)}
        for task, scores in found["results"].items()
    }


def offline(task: AbilityTask) -> dict[str, object]:
    """A task with questions that are read from files, as the harness takes tasks.

    Args:
        task: from :func:`loredit.data.ability.load`; not one of texts alone.

    Returns:
        For ``simple_evaluate``, which reports it under "offline_" and the task's name.

    Raises:
        HarnessError: the task has no questions.
    """
    if not task.questions:
        raise HarnessError(f"{task.name} has no questions")
    from datasets import Dataset  # noqa: PLC0415 - takes seconds to import

    columns = {
        "query": [question.text for question in task.questions],
        "choices": [[*question.options] for question in task.questions],
        "right": [question.right for question in task.questions],
    }
    one = all(len(question.options) == 1 for question in task.questions)
    kind = {
        "output_type": "loglikelihood" if one else "multiple_choice",
        "doc_to_target": "{{' ' + choices[0]}}" if one else "right",
        "metric_list": [{"metric": name} for name in (("perplexity", "acc") if one else ("acc", "acc_norm"))],
        **({} if one else {"doc_to_choice": "choices"}),
    }
    return {
        "task": f"offline_{task.name}",
        "custom_dataset": lambda **_: {"test": Dataset.from_dict(columns)},
        "test_split": "test",
        "doc_to_text": "{{query}}",
        **kind,
    }
