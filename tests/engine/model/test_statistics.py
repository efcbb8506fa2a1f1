"""Second moments against a loop over tokens; what the cache keeps; whitening."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loredit.engine.model import statistics
from loredit.engine.model.sites import Site, sites
from loredit.engine.model.statistics import StatisticsError, inverse_root, second_moments, whitening

TEXT = "The seat of government is where laws are made, and water runs downhill. " * 9


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(statistics, "cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def places(model: PreTrainedModel) -> list[Site]:
    return sites(model, ["mlp_down"], [1, 2])


def slow(model: PreTrainedModel, site: Site, windows: list[list[int]]) -> Tensor:
    """The mean of k k^T, token after token."""
    seen: list[Tensor] = []
    handle = model.get_submodule(site.name).register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        for ids in windows:
            model(torch.tensor([ids]))
    handle.remove()
    keys = torch.cat([x.reshape(-1, site.inputs) for x in seen])
    return sum(torch.outer(k, k) for k in keys) / len(keys)


@pytest.mark.parametrize("tokens", [100, 500])
def test_moments_are_the_mean_over_all_tokens(model, tokenizer, text, tokens, monkeypatch):
    monkeypatch.setattr(statistics, "_WINDOW", 64)
    ids = tokenizer(TEXT)["input_ids"][:tokens]
    windows = [ids[i : i + 64] for i in range(0, len(ids), 64)]
    found = second_moments(model, tokenizer, places(model), identity="m", text=text, tokens=tokens)
    for site, moments in zip(places(model), found, strict=True):
        assert moments.dtype == torch.float64
        torch.testing.assert_close(moments, slow(model, site, windows), rtol=1e-9, atol=1e-12)


def test_what_is_known_is_read_and_the_rest_is_taken(model, tokenizer, text, own_cache, monkeypatch):
    first, second = places(model)
    kept = second_moments(model, tokenizer, [second], identity="m", text=text)
    asked: list[list[Site]] = []
    take = statistics._moments
    monkeypatch.setattr(statistics, "_moments", lambda m, s, t: asked.append(list(s)) or take(m, s, t))
    both = second_moments(model, tokenizer, [first, second], identity="m", text=text)
    assert asked == [[first]]
    assert torch.equal(both[1], kept[0])
    # The model, the text and the number of tokens are all part of what is known.
    for other in ({"identity": "n"}, {"tokens": 90}):
        second_moments(model, tokenizer, [second], **{"identity": "m", "text": text} | other)
    text.write_text(TEXT[1:])
    second_moments(model, tokenizer, [second], identity="m", text=text)
    assert asked[1:] == [[second]] * 3
    # A broken file is taken anew.
    for file in own_cache.glob("statistics/*"):
        file.write_bytes(b"broken")
    text.write_text(TEXT)
    assert torch.equal(second_moments(model, tokenizer, [second], identity="m", text=text)[0], kept[0])


def test_without_a_text_the_model_writes_its_own_always_the_same(model, tokenizer, own_cache, monkeypatch):
    (site, _) = places(model)
    found = second_moments(model, tokenizer, [site], identity="m", tokens=300)
    sampled = statistics._sampled(model, tokenizer, 300, own_cache / "another")
    windows = [sampled[i : i + tiny.CONTEXT].tolist() for i in range(0, 300, tiny.CONTEXT)]
    assert len(sampled) == 300
    assert len({*map(tuple, windows)}) == 2, "texts differ"
    torch.testing.assert_close(found[0], slow(model, site, windows), rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(statistics, "continuations", None)  # texts are kept too
    second_moments(model, tokenizer, places(model), identity="m", tokens=300)


def test_of_two_at_once_both_get_all(tokenizer, text, own_cache):
    def take(model: PreTrainedModel) -> Tensor:
        return second_moments(model, tokenizer, places(model), identity="m", text=text)[0]

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(take, [tiny.model("gpt2") for _ in range(4)])
    assert all(torch.equal(other, first) for other in others)
    assert len([*own_cache.glob("statistics/*")]) == 2  # and nothing unfinished


def test_a_window_the_model_cannot_compute_is_left_out(tokenizer, text, monkeypatch):
    monkeypatch.setattr(statistics, "_WINDOW", 12)
    model = tiny.model("llama")
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    text.write_text("Good words. ~")
    sound = second_moments(model, tokenizer, places(model), identity="m", text=text, tokens=12)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer("~")["input_ids"]] = math.nan
    sick = second_moments(model, tokenizer, places(model), identity="n", text=text)
    torch.testing.assert_close(sick, sound, rtol=1e-9, atol=1e-12)
    text.write_text("~")
    with pytest.raises(StatisticsError, match="no finite number for any token"):
        second_moments(model, tokenizer, places(model), identity="n", text=text)


def test_texts_that_cannot_be_used_are_named(model, tokenizer, tmp_path):
    def take(path: Path) -> None:
        second_moments(model, tokenizer, places(model), identity="m", text=path)

    with pytest.raises(StatisticsError, match=r"none\.txt cannot be read: No such file"):
        take(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(StatisticsError, match=r"empty\.txt has no token"):
        take(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(StatisticsError, match=r"latin\.txt is not UTF-8"):
        take(tmp_path / "latin.txt")


def test_whitening_is_the_inverse_square_root():
    torch.manual_seed(0)
    c = (x := torch.randn(40, 6).double()).T @ x / 40
    s = whitening(c, 0.3)
    whole = c + 0.3 * c.diagonal().mean() * torch.eye(6).double()
    torch.testing.assert_close(s @ whole @ s, torch.eye(6).double(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(s, s.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whitening(c.float(), 0.3).float(), s.float())  # computed in float64 all the same
    root = inverse_root(c)
    torch.testing.assert_close(root @ root.T, c.inverse(), rtol=1e-9, atol=1e-10)


def test_moments_without_an_inverse_are_refused():
    c = torch.diag(torch.tensor([1.0, 0.0, 2.0]))
    assert whitening(c, 0.1).isfinite().all()
    with pytest.raises(StatisticsError, match="of 3 inputs are singular with eps 0; take a larger eps, or more tokens"):
        whitening(c, 0)
    with pytest.raises(StatisticsError, match="of 3 inputs are singular; take more statistics_tokens"):
        inverse_root(c)
