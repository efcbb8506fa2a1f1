"""The progress bar of commands and notebooks."""

from __future__ import annotations

from tqdm.auto import tqdm

from ..engine.progress import Phase


class Bar:
    """A progress bar that counts facts, with a rate; it appears with the first fact."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, phase: Phase, done: float, total: int) -> None:
        if self._bar is None:  # what an earlier session did counts as done, but not in the rate
            layout = "{desc:<18} {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_fmt}]"
            self._bar = tqdm(total=total, initial=done, unit="edit", bar_format=layout)
        self._bar.set_description_str(phase.value, refresh=False)
        self._bar.update(done - self._bar.n)
