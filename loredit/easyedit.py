"""For users of EasyEdit: our editors as its algorithms, and its ``edit`` on our engine. See docs/easyedit.md."""

from __future__ import annotations

from .bridges.easyedit import EasyEditHparams, apply, edit, hparams, register, to_easyedit

__all__ = ["EasyEditHparams", "apply", "edit", "hparams", "register", "to_easyedit"]
