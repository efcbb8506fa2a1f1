"""The samples of the pages (:mod:`samples`)."""

from __future__ import annotations

import pytest
import samples

TEXT = """\
`facts.txt`:

```
one
```

```
$ cat facts.txt \\
    - < /dev/null
two
```

```python
assert open("facts.txt").read() == "one\\n"
```
"""


def test_a_page_has_files_and_samples():
    files, (sample, script) = samples.of(TEXT)
    assert files == {"facts.txt": "one\n"}
    assert (sample.command, sample.shown) == ("cat facts.txt \\\n    - < /dev/null", "two\n")
    assert script.shown == ""
    assert [output for _, output in samples.printed(TEXT)] == ["one\n", ""]


def test_what_goes_wrong_is_seen():
    _, output = [*samples.printed(TEXT.replace('"one', '"three'))][1]
    assert "AssertionError" in output
    assert samples.likeness("", output) == 0


def test_numbers_and_frames_do_not_matter_but_words_do():
    shown = "┃ france ┃ Lyon ┃ 10 steps ┃\n┗━━━━━━━━┻━━━━━━┛\n3 edits, 0.4 MB: edits-18e1d1faa79e55e6.safetensors\n"
    assert samples.likeness(shown, shown.replace("0.4", "12.5").replace("━", "").replace("18e1", "77aa")) == 1
    assert samples.likeness(shown, shown.replace("steps", "passes").replace("edits", "facts")) < 0.9


# Other processors write other texts here and there; a page that is no longer true has half of its words in common.
@pytest.mark.pretrained
@pytest.mark.parametrize("page", samples.PAGES, ids=lambda page: page.name)
def test_a_page_shows_what_is_printed(page):
    ran = [*samples.printed(page.read_text(encoding="utf-8"))]
    assert ran
    for sample, output in ran:
        assert samples.likeness(sample.shown, output) > 0.8, f"{sample.command}\n{output}"
        tables = [line for line in output.splitlines() if line[0:1] in "┃│┏└"]
        assert all(len(line) <= 80 for line in tables), f"{sample.command}\n{output}"
