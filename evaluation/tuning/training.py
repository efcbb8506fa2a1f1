"""Training by Hugging Face's Trainer: many edits in one pass, or a whole model.

The optimizer for edits is the engine's own Adam, which has an edit axis, under torch's interface; what a method does
around a step (pruning, projection, ranks) hangs on Trainer's callbacks. Learning rates rise over the first 6 % of the
steps and then fall linearly to zero.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from ...engine.model.attention import trainable_attention
from ...engine.model.loading import SPLIT
from ...engine.patches.adam import Adam
from ...engine.patches.patch import Patch, nonzero_share
from ...engine.training.loop import clip
from .examples import Interleaved, Prepared, Sized, collated
from .side_by_side import SideBySide, Tuned

_POINTS = 100  # of a curve over the steps


class TrainingError(ValueError):
    """Training that cannot go on; the message says why and what may help."""


def check_device(device: str) -> None:
    """Refuse several devices, which edits of facts alone know. Raises TrainingError."""
    if device == SPLIT:
        raise TrainingError("training on many examples wants one device, not all GPUs (split); take --device auto")


@dataclass
class Curves:
    """What the method did over the steps: for each noted step, the share of non-zero numbers and the ranks by edit."""

    steps: list[int] = field(default_factory=list)
    nonzero: list[list[float]] = field(default_factory=list)
    ranks: list[list[dict[str, int | float]]] = field(default_factory=list)


class EditAdam(torch.optim.Optimizer):
    """The engine's :class:`Adam` over the parameters of modules whose first axis is the edit."""

    def __init__(self, named: Callable[[], Mapping[str, nn.Parameter]], rates: Mapping[str, float]) -> None:
        self._named = named
        self.adam = Adam(named(), rates)
        super().__init__([{"params": [p], "lr": rates[name], "name": name} for name, p in named().items()], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.adam.rates = {group["name"]: group["lr"] for group in self.param_groups}
        self.adam.step(self._named())

    def refresh(self) -> None:
        """Follow parameters that have been replaced by others of another shape."""
        named = self._named()
        for group in self.param_groups:
            group["params"] = [named[group["name"]]]


class AroundSteps(TrainerCallback):
    """What patches do before and after each optimizer step, as in the engine's own loop."""

    def __init__(self, module: Tuned, optimizer: EditAdam, clip_norm: float | None, curves: Curves) -> None:
        self._module, self._optimizer, self._clip_norm, self._curves = module, optimizer, clip_norm, curves

    @torch.no_grad()
    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        if self._clip_norm is not None:
            clip(self._module, self._clip_norm)  # type: ignore[arg-type]
        for patch in self._patches():
            patch.before_step()

    @torch.no_grad()
    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        for i, patch in enumerate(self._patches()):
            patch.steps += 1
            for name, edits in patch.after_step().items():
                self._optimizer.adam.restart(f"{i}.{name}", edits)
        self._optimizer.refresh()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % math.ceil(state.max_steps / _POINTS) and state.global_step < state.max_steps:
            return
        patch = [*self._patches()][-1]
        self._curves.steps.append(state.global_step)
        trained = [patch.trained(e) for e in range(len(patch))]
        self._curves.nonzero.append([nonzero_share(part) for part in trained])
        self._curves.ranks.append([patch.report(e).get("ranks", {}) for e in range(len(patch))])

    def _patches(self) -> Iterator[Patch]:
        yield from self._module.patches  # type: ignore[misc]


class _Bar(ProgressCallback):
    """Trainer's progress bar without the dictionaries it prints in between."""

    def on_log(self, *_: Any, **__: Any) -> None: ...


class _Trainer(Trainer):
    """Sums the edits' losses, and puts examples of like length into a batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        assert isinstance(model, Tuned)
        each = model.losses(inputs)
        for patch in model.patches:
            each = each + patch.penalty()  # type: ignore[operator]
        if not each.isfinite().all():
            raise TrainingError(
                f"the loss became {each.tolist()} at step {self.state.global_step}; a lower lr may help (--set lr=...)"
            )
        return each.sum()

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        generator = torch.Generator().manual_seed(self.args.seed)
        assert isinstance(self.train_dataset, Interleaved)  # whose items go from short to long
        lengths = [*range(len(self.train_dataset))]
        return LengthGroupedSampler(self.args.train_batch_size, lengths=lengths, generator=generator)


Collate = Callable[[Sequence[Any]], dict[str, Any]]
"""Makes a batch of items, each of which has an example for each edit."""


def train(
    module: Tuned,
    parts: Sequence[Sequence[Sized]],
    seeds: Sequence[int],
    collate: Collate,
    *,
    optimizer: torch.optim.Optimizer,
    callbacks: Sequence[TrainerCallback],
    steps: int,
    batch_size: int,
    clip_norm: float,
    seed: int,
    progress: bool,
) -> None:
    """Train edit e on ``parts[e]``, in an order of its own.

    ``clip_norm``: of all gradients together; 0: none. ``seed``: of torch's own draws and of the order of batches, which
    the edits share; which examples are in a batch is their own.
    """
    with tempfile.TemporaryDirectory() as folder, trainable_attention(module.model):
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            lr_scheduler_type="linear",
            warmup_steps=0.06,
            max_grad_norm=clip_norm,
            seed=seed,
            use_cpu=module.model.device.type == "cpu",
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        arguments._n_gpu = 1  # noqa: SLF001 - else a second GPU would get rows of its own, and the edits would be cut apart
        trainer = _Trainer(
            module,
            arguments,
            data_collator=collate,
            train_dataset=Interleaved(parts, seeds),
            optimizers=(optimizer, None),
            callbacks=[*callbacks, *([_Bar()] if progress else [])],
        )
        trainer.remove_callback(PrinterCallback)  # of the run's end, which the result says better
        trainer.train()


def train_patches(
    module: Tuned,
    parts: Sequence[Sequence[Sized]],
    seeds: Sequence[int],
    collate: Collate,
    *,
    rates: Mapping[str, float],
    clip_norm: float | None,
    steps: int,
    batch_size: int,
    progress: bool,
) -> Curves:
    """Train the module's patches, edit e on ``parts[e]``; what they did over the steps.

    ``rates``: the learning rate of each parameter, by its name in ``module.patches``. ``clip_norm``: the largest norm
    of one edit's gradient; None: any.
    """
    curves = Curves()
    optimizer = EditAdam(lambda: dict(module.patches.named_parameters()), rates)
    train(
        module,
        parts,
        seeds,
        collate,
        optimizer=optimizer,
        callbacks=[AroundSteps(module, optimizer, clip_norm, curves)],
        steps=steps,
        batch_size=batch_size,
        clip_norm=0,
        seed=0,
        progress=progress,
    )
    return curves


def train_own(
    module: Tuned,
    part: Sequence[Sized],
    seed: int,
    collate: Collate,
    *,
    lr: float,
    clip_norm: float | None,
    steps: int,
    batch_size: int,
    progress: bool,
) -> None:
    """Train those of the model's own weights that want gradients, in place."""
    train(
        module,
        [part],
        [seed],
        collate,
        optimizer=torch.optim.AdamW([p for p in module.model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0),
        callbacks=[],
        steps=steps,
        batch_size=batch_size,
        clip_norm=clip_norm or 0,
        seed=seed % 2**32,  # NumPy takes no more
        progress=progress,
    )


@torch.no_grad()
def scored(
    module: SideBySide,
    examples: Sequence[Prepared],
    edits: int,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    progress: bool,
) -> Tensor:
    """(N, E, K), the logits of each edit for each example, in the order of ``examples``."""
    module.eval()
    order = sorted(range(len(examples)), key=lambda i: examples[i].length)
    items = [(examples[i],) * edits for i in order]
    loader: DataLoader[Any] = DataLoader(
        items,  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=partial(collated, tokenizer=tokenizer),
    )
    found = []
    for batch in tqdm(loader, desc="scoring", unit="batch", disable=not progress, leave=False):
        inputs = {name: t.to(module.model.device) for name, t in batch.items() if name != "labels"}
        found.append(module.logits(inputs, inputs.pop("keys")).cpu())
    back = torch.tensor(order).argsort()
    return torch.cat(found)[back]
