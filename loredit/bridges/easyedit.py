"""The bridge to EasyEdit (https://github.com/zjunlp/EasyEdit): our editors as its algorithms, and its ``edit`` on our
engine. Public as ``loredit.easyedit``.

EasyEdit finds a method by name in ``ALG_DICT`` and calls it with the arguments of :func:`apply`. Single edits it undoes
after scoring, by the method's name: methods in ``CALLABLE_RESTORE_ALGS`` have returned a function, which it calls, the
others the original weights by parameter name, which it copies back. In sequential editing it undoes nothing.

EasyEdit itself is imported by :func:`register` alone.
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers import __version__ as transformers_version

from ..data import Fact, FactError, from_request
from ..editors import Editor, Edits, Hparams, WeightPatch, available, find
from ..editors import settings as settings_of
from ..engine.model.hooks import attached_to
from ..engine.model.loading import load, pick_device
from ..engine.patches.rows import Rows
from ..engine.progress import Phase, Progress
from ..evaluation.report.easyedit import to_easyedit
from ..evaluation.scores import FactScores
from ..evaluation.scoring import evaluate

__all__ = ["EasyEditHparams", "apply", "edit", "hparams", "register", "to_easyedit"]

Request = Mapping[str, object]
"""EasyEdit's request: prompt, target_new, subject, locality {group: {prompt: [...], ground_truth: [...]}}, ..."""

Groups = Mapping[str, Mapping[str, Sequence[object]]]
"""EasyEdit's probes of many facts: by group, a prompt and a ground_truth for each fact."""

_ITS_OWN = frozenset({"AlphaEdit", "EMMET", "LoRA", "MEMIT", "ROME"})
"""Names of editors here under which EasyEdit has a method of its own."""


@dataclass(eq=False)
class EasyEditHparams:
    """What EasyEdit reads of a hyper-parameter object, and the settings of one of our editors.

    Fields may be set later, as those of EasyEdit's own objects; :func:`hparams` makes one from a preset.

    Example:
        >>> hparams("lora", "smollm2").alg_name
        'loredit-LoRA'
    """

    alg_name: str
    model_name: str | tuple[PreTrainedModel, PreTrainedTokenizerBase]
    device: str | int
    editor: str
    settings: Hparams
    seed: int = 0
    batch_size: int = 1
    max_length: int = 40
    model_parallel: bool = False
    fp16: bool = False
    evaluation_type: str | None = None
    use_chat_template: bool = False
    api_key: str | None = None


def hparams(
    editor: str,
    preset: str,
    overrides: Mapping[str, object] | None = None,
    *,
    model_name: str | tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    device: str | int = "auto",
    batch_size: int = 1,
    seed: int = 0,
    fp16: bool = False,
) -> EasyEditHparams:
    """Hyper-parameters of one of our editors, for EasyEdit's ``BaseEditor.from_hparams`` and for :func:`edit`.

    Args:
        editor: a name in ``loredit.editors.available()``.
        preset: a YAML file, or the name of one that comes with the editor ("smollm2.yaml").
        overrides: hyper-parameters in place of the preset's, ``{"lr": 1e-3}``.
        model_name: None is the preset's model. EasyEdit tells model families apart by the name, which must hold
            "llama", "gpt" or another it knows; :func:`edit` takes any model, also a pair (model, tokenizer).
        device: "auto", "cpu", "cuda:1", ...; a number is that CUDA device, as in EasyEdit.
        batch_size: facts per edit in EasyEdit's ``batch_edit``; its ``edit`` wants 1.
        seed: same seed, same machine: same numbers.
        fp16: load the model in float16, as EasyEdit does.

    Returns:
        The object.

    Raises:
        ValueError: an unknown editor, preset or hyper-parameter, or a device that cannot be used here.

    Example:
        >>> hparams("roselora", "smollm2", {"lr": 1e-3}).settings.lr
        0.001
    """
    settings = settings_of(editor, preset, overrides)
    return EasyEditHparams(
        alg_name=_alg_name(editor),
        model_name=settings.model if model_name is None else model_name,
        device=str(pick_device(f"cuda:{device}" if isinstance(device, int) else device)),
        editor=editor,
        settings=settings,
        seed=seed,
        batch_size=batch_size,
        fp16=fp16,
    )


# EasyEdit calls us


def register(*, overwrite: bool = False) -> list[str]:
    """Make our editors known to EasyEdit.

    An editor is called as its class ("RoseLoRA"), with "loredit-" before it where EasyEdit has a method of that name
    ("loredit-LoRA"). Importing EasyEdit leaves random generators, logging, warnings and environment as they were.

    Args:
        overwrite: put ours under names of EasyEdit's own as well, in place of what is there.

    Returns:
        The names of our editors there.

    Raises:
        ImportError: EasyEdit cannot be imported, and what would help.
        ValueError: another method has one of the names.

    Example:
        >>> "RoseLoRA" in register()  # doctest: +SKIP
        True
    """
    names = {_alg_name(editor): editor for editor in available()}
    if overwrite:
        names |= {find(editor).__name__: editor for editor in available()}
    try:
        with _undisturbed():
            algorithms = importlib.import_module("easyeditor.util.alg_dict").ALG_DICT
            utils = importlib.import_module("easyeditor.editors.utils")
            gate = importlib.import_module("easyeditor.editors.batch_editor").BatchEditor
        called, unloaded = utils.CALLABLE_RESTORE_ALGS, utils.PEFT_RESTORE_ALGS
    except (ImportError, AttributeError) as error:
        raise ImportError(f"EasyEdit cannot be used here ({error}): {_remedy(error)}") from error
    taken = [name for name in names if algorithms.get(name, apply) is not apply]
    if taken and not overwrite:
        raise ValueError(f"EasyEdit already has {', '.join(taken)}; register(overwrite=True) replaces it")
    algorithms.update(dict.fromkeys(names, apply))
    unloaded.difference_update(names)
    called.difference_update(names)
    called.update(name for name, editor in names.items() if not find(editor).merges)
    batchable = gate.is_batchable_method
    gate.is_batchable_method = staticmethod(lambda name: name in names or batchable(name))
    return list(names)


def _remedy(error: ImportError | AttributeError) -> str:
    missing = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if missing == "transformers":
        return (
            f"a checkout of June 2026 or later works with transformers up to 5.23, and this is {transformers_version}; "
            "pip install 'transformers<5.24', or take a newer checkout"
        )
    if missing in ("timm", "torchvision"):
        return (
            f"pip install timm torchvision 'torch=={torch.__version__}', torchvision from where torch came from "
            "(docs/easyedit.md)"
        )
    if missing and missing != "easyeditor":
        return "pip install 'loredit[easyedit]'"
    return "a checkout of zjunlp/EasyEdit of June 2026 or later is to be on PYTHONPATH"


def apply(
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    hparams: EasyEditHparams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    **_: object,
) -> tuple[PreTrainedModel, dict[str, Tensor] | Callable[[], None]]:
    """One edit that carries all ``requests``, put on the model: EasyEdit's signature, for all of our editors.

    A change of weights is merged; any other edit is attached. If the last edit is still on the model, as in sequential
    editing, training goes on from it and the new edit takes its place, as in ``Editor.edit_stream``.

    Args:
        model: what is edited.
        tok: its tokenizer.
        requests: EasyEdit's dictionaries.
        hparams: what :func:`hparams` made.
        copy: edit a copy of the model.
        return_orig_weights: hand out what undoes the edit.
        keep_original_weight: means nothing here.
        **_: what EasyEdit passes beside these, which means nothing here either.

    Returns:
        The model, and what undoes the edit: the weights before it by parameter name or, of an attached one, a function.

    Raises:
        ValueError: a request makes no fact or no edit.
        RuntimeError: the edit of other settings is still attached to the model.

    Example:
        >>> settings = hparams("adapter", "smollm2")
        >>> edited, undo = apply(model, tok, [request], settings, return_orig_weights=True)  # doctest: +SKIP
        >>> undo()  # doctest: +SKIP
    """
    editor = find(hparams.editor)(deepcopy(model) if copy else model, tok, hparams.settings, seed=hparams.seed)
    facts = _asked(hparams, _facts(requests), editor)
    last = _LAST.get(hparams)
    if last and not (last.stays and _same(last.edits.editor, editor)):
        last = None
    if last is None and attached_to(editor.model):
        raise RuntimeError(
            "an edit of another method, other settings or another object of hyper-parameters is attached to the model; "
            "undo it first (by the function that apply(..., return_orig_weights=True) returned), or go on with the "
            "hyper-parameters that it was made with"
        )
    with _lifted(last):
        edits = editor.edit(facts, after=last.edits if last else None)
    earlier = len(edits.facts[0]) - len(facts)
    lost = [(facts[i - earlier], error) for i, error in edits.outcomes[0].lost.items() if i >= earlier]
    if lost:
        told = (f"{fact.prompt!r} -> {fact.target_new!r}: {error}" for fact, error in lost)
        raise ValueError("\n".join(told))
    new = _Merged(edits) if find(hparams.editor).merges else _Attached(edits)

    def undo() -> None:
        if not new.stays:
            return
        new.take_off()
        if last:
            last.put_on()
            _LAST[hparams] = last

    before = new.weights() if isinstance(new, _Merged) else undo
    if last:
        last.take_off()
    new.put_on()
    _LAST[hparams] = new
    return editor.model, before if return_orig_weights else {}


class _Applied(Protocol):
    """An edit that can be put on its model and taken off again."""

    edits: Edits

    def put_on(self) -> None: ...

    def take_off(self) -> None: ...

    @property
    def stays(self) -> bool:
        """It is on the model, and nobody has undone it."""


_LAST: WeakKeyDictionary[EasyEditHparams, _Applied] = WeakKeyDictionary()
"""What each object of hyper-parameters, which EasyEdit hands to every call of a run, was last used for."""


class _Merged:
    """An edit as a change of the model's weights."""

    def __init__(self, edits: Edits) -> None:
        assert isinstance(edits.patch, WeightPatch)
        self.edits, self._patch, self._model = edits, edits.patch, edits.editor.model
        self._weights = {name: self._model.get_parameter(name) for name in self._patch.delta_weights(0)}

    def weights(self) -> dict[str, Tensor]:
        """Copies of what the edit changes, as it is now, by parameter name."""
        return {name: weight.detach().clone() for name, weight in self._weights.items()}

    def put_on(self) -> None:
        self._before = self.weights()
        self._patch.merge(self._model, 0)
        self._versions = self._counted()

    @torch.no_grad()
    def take_off(self) -> None:
        for name, weight in self._before.items():
            self._weights[name].copy_(weight)

    @property
    def stays(self) -> bool:
        return self._versions == self._counted()

    def _counted(self) -> list[int]:
        """How often each weight has been changed in place: EasyEdit's copying back is such a change."""
        return [weight._version for weight in self._weights.values()]  # noqa: SLF001 - torch's own count


class _Attached:
    """An edit as hooks on the model."""

    def __init__(self, edits: Edits) -> None:
        self.edits, self.stays, self._hooks = edits, False, ExitStack()

    def put_on(self) -> None:
        model = self.edits.editor.model
        self._hooks.enter_context(self.edits.patch.attached(model, Rows([0], 1, model.device)))
        # A context that is forgotten is closed. This one lasts as long as the model, which the hook ties it to.
        self._hooks.callback(model.register_forward_pre_hook(lambda *_, edit=self: None).remove)
        self.stays = True

    def take_off(self) -> None:
        self._hooks.close()
        self.stays = False


@contextmanager
def _lifted(applied: _Applied | None) -> Iterator[None]:
    """Without the edit on its model while open."""
    if applied is None:
        yield
        return
    applied.take_off()
    try:
        yield
    finally:
        applied.put_on()


def _same(a: Editor, b: Editor) -> bool:
    return a.model is b.model and type(a) is type(b) and a.hparams == b.hparams


def _alg_name(editor: str) -> str:
    name = find(editor).__name__
    return f"loredit-{name}" if name in _ITS_OWN else name


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Generators, root logger, warning filters and environment are afterwards as they were."""
    root, environment = logging.getLogger(), dict(os.environ)
    handlers, level, python = root.handlers[:], root.level, random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002 - the old generator is the one that EasyEdit seeds
    with torch.random.fork_rng(range(torch.cuda.device_count())), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            os.environ.clear()
            os.environ.update(environment)


# EasyEdit's users call us


def edit(
    hparams: EasyEditHparams,
    prompts: str | Sequence[str],
    target_new: str | Sequence[str],
    ground_truth: str | Sequence[str | None] | None = None,
    target_neg: object = None,
    rephrase_prompts: str | Sequence[str] | None = None,
    locality_inputs: Groups | None = None,
    portability_inputs: Groups | None = None,
    sequential_edit: bool = False,
    verbose: bool = True,
    *,
    subject: str | Sequence[str] | None = None,
    test_generation: bool = False,
    requests: Sequence[Request] | None = None,
    **others: object,
) -> list[dict[str, object]]:
    """The metrics that EasyEdit's ``BaseEditor.edit`` returns for these arguments, computed by our engine.

    ``metrics, edited_model, _ = editor.edit(prompts=..., ...)`` becomes ``metrics = edit(hparams, prompts=..., ...)``.
    EasyEdit is not needed.

    Args:
        hparams: what :func:`hparams` made.
        prompts: of each fact.
        target_new: of each fact.
        ground_truth: of each fact.
        target_neg: means nothing here.
        rephrase_prompts: of each fact.
        locality_inputs: probes, by group.
        portability_inputs: probes, by group.
        sequential_edit: score each fact right after its own edit, on the model with all edits up to it.
        verbose: show a bar.
        subject: of each fact.
        test_generation: sample a text for each fact and measure its fluency.
        requests: dictionaries in place of all these columns.
        **others: EasyEdit's other arguments, of which ``keep_original_weight``, ``pre_edit``, ``pre_file``,
            ``train_ds`` and ``loc_prompts`` change nothing.

    Returns:
        An entry for each fact, as :func:`to_easyedit` has it.

    Raises:
        ValueError: faulty requests (all of them at once), or what only EasyEdit measures: another ``eval_metric``,
            ``evaluation_type``; or ``use_chat_template`` where there is no template.
        TypeError: an argument that EasyEdit does not have.

    Example:
        >>> metrics = edit(hparams("lora", "smollm2"), "Water is", "dry", subject="Water")  # doctest: +SKIP
        >>> metrics[0]["post"]["rewrite_acc"]  # doctest: +SKIP
        [1.0]
    """
    _refuse(hparams, others)
    asked = (
        list(requests)
        if requests is not None
        else _requests(
            prompts, target_new, ground_truth, rephrase_prompts, locality_inputs, portability_inputs, subject
        )
    )
    plain = _facts(asked)  # faults of the requests are told before a model is loaded
    editor = find(hparams.editor)(*_model_of(hparams), hparams.settings, seed=hparams.seed)
    facts = _asked(hparams, plain, editor)
    scores: dict[int, FactScores] = {}
    with tqdm(total=len(facts), unit="edit", disable=not verbose) as bar:

        def told(phase: Phase, share: float, edits: int) -> None:
            bar.set_description(f"{phase.value} {share:4.0%}")

        for indices, edits in (_in_a_row if sequential_edit else _side_by_side)(editor, facts, told):
            scored = evaluate(edits, fluency=test_generation, seed=hparams.seed, progress=told)
            scores.update(zip(indices, scored, strict=True))
            bar.update(len(indices))
    return [
        to_easyedit(scores[i]) | {"case_id": i, "requested_rewrite": dict(request)} for i, request in enumerate(asked)
    ]


def _side_by_side(editor: Editor, facts: Sequence[Fact], told: Progress) -> Iterator[tuple[list[int], Edits]]:
    # What is said twice has one case id, and the same edit: its batches take its indices in turn.
    indices: dict[str, list[int]] = {}
    for i, fact in enumerate(facts):
        indices.setdefault(fact.case_id, []).append(i)
    for edits in editor.edit_batches(facts, progress=told):
        yield [indices[case_id].pop(0) for case_id in edits.case_ids], edits


def _in_a_row(editor: Editor, facts: Sequence[Fact], told: Progress) -> Iterator[tuple[list[int], Edits]]:
    for i, edits in enumerate(editor.edit_stream(facts, progress=told)):
        yield [i], edits.about([i])


def _refuse(hparams: EasyEditHparams, others: Mapping[str, object]) -> None:
    known = {"keep_original_weight", "pre_edit", "pre_file", "train_ds", "loc_prompts", "eval_metric"}
    if unknown := sorted(others.keys() - known):
        raise TypeError(f"EasyEdit's edit has arguments {', '.join(unknown)} that are not known here")
    faults = []
    if others.get("eval_metric", "token_em") not in ("token_em", "exact match"):
        faults.append(f"eval_metric={others['eval_metric']!r}")
    if hparams.evaluation_type in ("LLM-judge", "generate-text"):
        faults.append(f"evaluation_type={hparams.evaluation_type!r}")
    if faults:
        raise ValueError(f"{' and '.join(faults)}: only EasyEdit measures so; register() and its own edit do")


def _model_of(hparams: EasyEditHparams) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that EasyEdit's BaseEditor would load, in the same precision."""
    if not isinstance(hparams.model_name, str):
        return hparams.model_name
    device = f"cuda:{hparams.device}" if isinstance(hparams.device, int) else hparams.device
    loaded = load(hparams.model_name, device=device, dtype="float16" if hparams.fp16 else "float32")
    return loaded.model, loaded.tokenizer


def _requests(
    prompts: str | Sequence[str],
    target_new: str | Sequence[str],
    ground_truth: str | Sequence[str | None] | None,
    rephrase_prompts: str | Sequence[str] | None,
    locality: Groups | None,
    portability: Groups | None,
    subject: str | Sequence[str] | None,
) -> list[dict[str, object]]:
    """Columns, with a value for each fact, as EasyEdit's requests, one for each fact."""
    columns = {"prompt": _column(prompts), "target_new": _column(target_new)}
    n = len(columns["prompt"])
    columns["ground_truth"] = [None] * n if ground_truth is None else _column(ground_truth)
    given = {"subject": subject, "rephrase_prompt": rephrase_prompts}
    columns |= {name: _column(values) for name, values in given.items() if values is not None}
    groups = {
        (kind, group, part): [inputs.get(part)] if isinstance(inputs.get("prompt"), str) else list(inputs.get(part, ()))
        for kind, of_kind in (("portability", portability), ("locality", locality))
        for group, inputs in (of_kind or {}).items()
        for part in ("prompt", "ground_truth")
    }
    lengths = {name: len(values) for name, values in columns.items()} | {
        ".".join(column): len(values) for column, values in groups.items()
    }
    if uneven := [f"{name} has {length}" for name, length in lengths.items() if length != n]:
        raise ValueError(f"every fact needs a value (None where it has none), and there are {n}: {', '.join(uneven)}")
    requests: list[dict[str, object]] = []
    for i in range(n):
        request: dict[str, object] = {name: values[i] for name, values in columns.items()}
        probes: dict[str, dict[str, dict[str, object]]] = {"portability": {}, "locality": {}}
        for (kind, group, part), values in groups.items():
            if groups[kind, group, "prompt"][i] is not None:
                probes[kind].setdefault(group, {})[part] = values[i]
        requests.append(request | probes)
    return requests


def _column(values: str | Sequence[object]) -> list[object]:
    return [values] if isinstance(values, str) else list(values)


def _facts(requests: Sequence[Request]) -> list[Fact]:
    """The requests as facts. What a fact is called (its edit's random numbers come from that) is what it says."""
    facts, bad = [], []
    for i, request in enumerate(requests):
        try:
            facts.append(from_request(request, case_id=f"{request.get('prompt')} -> {request.get('target_new')}"))
        except FactError as error:
            bad += [fault._replace(where=f"request {i}") for fault in error.bad]
    if bad:
        raise FactError(f"{len(bad)} faults in the requests:", bad)
    return facts


def _asked(hparams: EasyEditHparams, facts: Sequence[Fact], editor: Editor) -> Sequence[Fact]:
    """The facts as EasyEdit asks for them with ``use_chat_template``: all prompts but those of locality are turns of a
    chat, with a space between the template and the answer."""
    if not hparams.use_chat_template:
        return facts
    if not editor.encoder.chats:
        raise ValueError("use_chat_template=True, and the tokenizer has no chat template; set one, or leave it out")
    if getattr(hparams.settings, "chat_template", "none") != "none":
        raise ValueError(
            "use_chat_template=True asks for every prompt in the chat template; chat_template has to be none then"
        )

    def chat(prompt: str) -> str:
        return editor.encoder.chat(prompt).text

    return [
        fact.model_copy(
            update={
                "prompt": chat(fact.prompt),
                "rephrase_prompts": tuple(map(chat, fact.rephrase_prompts)),
                "portability": {
                    group: tuple(probe.model_copy(update={"prompt": chat(probe.prompt)}) for probe in probes)
                    for group, probes in fact.portability.items()
                },
            }
        )
        for fact in facts
    ]
