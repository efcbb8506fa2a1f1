"""What the unedited model writes, remembered on the disk: of several editors on the same facts, the first pays for it.

Texts are kept under the conditions that they depend on (model, dtype, device, versions), the prompt and how it was
continued, in ``$LOREDIT_CACHE/texts``. In float32 and above a text is the same in any company; in bfloat16 one that
was written beside others may differ where two tokens are all but equally likely, with and without this.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress

from ..engine.model.cache import cache

_AT_ONCE = 500  # keys of a query; sqlite takes no more than 999 in old versions
_PATIENCE = 10.0  # seconds to wait for another process


class Texts:
    """The unedited model's texts under some conditions.

    A file that cannot be read or written costs time, no more.

    Args:
        conditions: what texts depend on beside prompt and manner.

    Example:
        >>> texts = Texts(Conditions.of(editor).model_dump_json())  # doctest: +SKIP
        >>> texts.put({((504, 3575, 282), "greedy", 32): " Paris."})  # doctest: +SKIP
    """

    def __init__(self, conditions: str) -> None:
        self._under = conditions
        self._file = cache() / "texts" / f"{hashlib.sha256(self._under.encode()).hexdigest()[:32]}.sqlite"

    def get(self, keys: Sequence[Hashable]) -> dict[Hashable, str]:
        """Those of them that are known."""
        named = {self._name(key): key for key in keys}
        found: dict[Hashable, str] = {}
        with suppress(sqlite3.Error, OSError), self._open() as known:
            names = [*named]
            for i in range(0, len(names), _AT_ONCE):
                part = names[i : i + _AT_ONCE]
                asked = f"SELECT name, text FROM texts WHERE name IN ({','.join('?' * len(part))})"
                found |= {named[name]: text for name, text in known.execute(asked, part)}
        return found

    def put(self, texts: Mapping[Hashable, str]) -> None:
        """Remember them."""
        rows = [(self._name(key), text) for key, text in texts.items()]
        with suppress(sqlite3.Error, OSError), self._open() as known, known:
            known.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._file, timeout=_PATIENCE)) as known:
            known.execute("CREATE TABLE IF NOT EXISTS texts (name TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")
            yield known

    def _name(self, key: Hashable) -> str:
        return hashlib.sha256(json.dumps([self._under, key], default=repr).encode()).hexdigest()
