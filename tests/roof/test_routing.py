"""From a prompt to its fact: what counts as the same name, what is asked in a chat, and none rather than wrong."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pytest
import torch
from torch.nn.functional import normalize

from loredit.data import Fact, Probe
from loredit.store.calibration import Calibration, cut, probability, regression
from loredit.store.encoder import Reading, SentenceEncoder, Sentences
from loredit.store.routing import Router, contradict, fitted, probes, samples
from loredit.store.text import asked, found, name_of, plain, windows, words


class Words(SentenceEncoder):
    """A random vector for each word, so that texts are alike by the words they share."""

    name, width = "words", 64

    def __init__(self) -> None:
        self.seen: list[str] = []

    def _read(self, texts: Sequence[str]) -> list[Reading]:
        self.seen += texts
        return [self._reading(text) for text in texts]

    def _reading(self, text: str) -> Reading:
        said = words(text)
        draws = [torch.Generator().manual_seed(zlib.crc32(word.text.encode())) for word in said]
        states = [torch.randn(self.width, generator=draw) for draw in draws]
        return Reading(torch.stack(states), torch.tensor([[word.start, word.end] for word in said]))


JUDGE = Calibration(named=(-6, 4, 6, 0, 0), unnamed=(-4, 8), threshold=0.6, margin=0.5)
FACTS = (
    Fact(case_id="france", prompt="The capital of France is", target_new="Rome", subject="France"),
    Fact(case_id="egypt", prompt="The capital of Egypt is", target_new="Giza", subject="Egypt"),
    Fact(case_id="money", prompt="The currency of France is", target_new="pound", subject="France"),
    Fact(case_id="sky", prompt="By daylight the sky looks", target_new="green"),
)


@pytest.fixture
def router() -> Router:
    router = Router(Words(), JUDGE)
    router.add(FACTS)
    return router


def went(router: Router, *prompts: str) -> list[str | None]:
    return [route.fact.case_id if route.fact else None for route in router.route(prompts)]


@pytest.mark.parametrize(
    ("subject", "text", "sure"),
    [
        ("France", "the capital of FRANCE's north", 1.0),
        ("The Beatles", "who founded the beatles", 1.0),
        ("Beyoncé", "Where was Beyonce born", 1.0),
        ("Hector's clingfish", "What family does Hector\N{RIGHT SINGLE QUOTATION MARK}s clingfish belong to", 1.0),
        ("Trichobathra", "Which was the Trichobatra family", pytest.approx(0.957, abs=1e-3)),
        ("New York", "he lives in NewYork", 1.0),
        ("Albert Einstein", "Where was Einstein born", pytest.approx(0.286, abs=1e-3)),
        ("Egypt", "The capital of France is", 0.0),
        ("Ann", "Annual rings", 0.0),
        ("!?", "anything", 0.0),
    ],
)
def test_a_name_is_known_in_its_spellings_and_no_other(subject, text, sure):
    assert found(name_of(subject), words(text))[0] == sure


def test_a_name_has_its_place_in_the_text():
    text = "Is the Côte d'Azur's coast long"
    sure, span = found(name_of("Cote d'Azur"), words(text))
    assert sure == 1
    assert text[slice(*span)] == "Côte d'Azur"


CHATS = [
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho wrote Dune?<|im_end|>\n<|im_start|>assistant\n",
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nWho wrote Dune?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<bos><start_of_turn>user\nWho wrote Dune?<end_of_turn>\n<start_of_turn>model\n",
    "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho wrote Dune? [/INST]",
    "<|system|>\nBe brief.<|end|>\n<|user|>\nWho wrote Dune?<|end|>\n<|assistant|>\n",
    "System: Be brief.\nUser: Hello\nAssistant: Hello!\nUser: Who wrote Dune?\nAssistant:",
    "Q: Who lives in Rome?\nA: Romans.\n\nQ: Who wrote Dune?\nA:",
    "Who wrote Dune?",
]


@pytest.mark.parametrize("chat", CHATS)
def test_what_is_asked_last_in_a_chat_is_found(chat):
    assert asked(chat) == "Who wrote Dune?"


def test_windows_are_the_whole_and_the_last_sentences():
    assert windows("Who wrote Dune?") == ["Who wrote Dune"]
    assert "The capital of France is" in windows("Rivers are long. Nothing is known of them! The capital of France is")
    assert "What is the capital of France" in windows("What is the capital of France? Please answer briefly.")
    assert windows("?") == ["?"]
    assert all(len(window.split()) <= 64 for window in windows("word " * 500))


def test_a_prompt_goes_to_the_fact_with_its_subject_and_relation(router):
    assert went(router, "What is the capital of France?", "France's capital is", "the CAPITAL of egypt is?") == [
        *("france", "france", "egypt")
    ]
    assert went(router, "What is the currency of France?") == ["money"]


def test_other_subjects_and_other_relations_go_nowhere(router):
    assert went(router, "The capital of Spain is", "The highest mountain in France was climbed by", "Water boils") == [
        *(None, None, None)
    ]


def test_a_route_tells_its_score_and_the_nearest_fact(router):
    right, astray = router.route(["The capital of France is", "The capital of Spain is"])
    assert (right.edit, right.fact, right.nearest) == (0, FACTS[0], FACTS[0])
    assert right.score > 0.999
    assert (astray.edit, astray.fact) == (-1, None)
    assert astray.nearest in FACTS[:2]
    assert 0 < astray.score < JUDGE.threshold


@pytest.mark.parametrize("chat", CHATS)
def test_a_question_in_a_chat_finds_its_fact(router, chat):
    assert went(router, chat.replace("Who wrote Dune?", "What is the capital of Egypt?")) == ["egypt"]


def test_a_fact_without_a_subject_goes_by_likeness_alone(router):
    assert went(router, "The sky looks by daylight", "Grass looks green") == ["sky", None]


def test_between_two_answers_there_is_none_but_a_facts_very_prompt_is_its_own():
    router = Router(Words(), JUDGE)
    twin = FACTS[0].model_copy(
        update={"case_id": "twin", "prompt": "The capital city of France is", "target_new": "Nice"}
    )
    router.add([FACTS[0], twin])
    assert went(router, "France has the capital", FACTS[0].prompt, twin.prompt) == [None, "france", "twin"]
    same = twin.model_copy(update={"target_new": FACTS[0].target_new})
    router = Router(Words(), JUDGE)
    router.add([FACTS[0], same])
    assert went(router, "the capital of France") != [None]


def test_facts_that_are_there_are_not_embedded_again(router):
    encoder = router.encoder
    encoder.seen.clear()
    router.add([Fact(case_id="rain", prompt="Rain is", target_new="dry", subject="Rain")])
    assert encoder.seen == ["Rain is"]
    assert went(router, "Rain is", FACTS[0].prompt) == ["rain", "france"]


def test_what_is_removed_is_not_found_and_the_edits_behind_it_move_up(router):
    router.remove(0)
    assert "france" not in went(router, "What is the capital of France?", FACTS[0].prompt)
    assert went(router, FACTS[1].prompt) == ["egypt"]
    assert router.edits == (0, 1, 2)
    for _ in range(3):
        router.remove(0)
    assert router.route(["The capital of Egypt is"])[0].nearest is None


def test_embeddings_are_kept_and_brought_back(router):
    again = Router(Words(), JUDGE)
    again.restore(router.facts, router.edits, router.tensors())
    assert again.encoder.seen == []
    prompts = [fact.prompt for fact in FACTS] + ["The capital of Spain is"]
    assert again.route(prompts) == router.route(prompts)
    with pytest.raises(ValueError, match="keys"):
        again.restore(FACTS[:1], [0], router.tensors())
    other = Router(Words(), JUDGE.model_copy(update={"wording": (1.0, 2.0)}))
    with pytest.raises(ValueError, match="wording: 2 numbers, not 64"):
        other.restore(router.facts, router.edits, router.tensors())


def test_of_many_facts_those_with_the_subject_are_looked_at_too():
    router = Router(Words(), JUDGE)
    asked = [f"The capital of land{i} is" for i in range(50)]
    router.add([Fact(case_id=str(i), prompt=p, target_new=str(i), subject=f"land{i}") for i, p in enumerate(asked)])
    said = "In geography lessons long ago one could learn what capital it is that land37 has"
    assert [pair.fact for pair in router.candidates([said])[0] if pair.subject == 1] == [37]


def test_regression_is_where_the_slope_is_zero():
    torch.manual_seed(0)
    rows = torch.randn(200, 3)
    labels = (rows @ torch.tensor([1.0, -2.0, 0.0]) + 0.5 * torch.randn(200) > 0).float()
    beta = torch.tensor(regression(rows.tolist(), labels.tolist(), [1 / 200] * 200), requires_grad=True)
    x = torch.cat([torch.ones(200, 1), rows], 1)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ beta, labels) + 0.00015 * (beta[1:] ** 2).sum()
    loss.backward()
    assert beta.grad.abs().max() < 1e-5


@pytest.mark.parametrize("z", [-800.0, -1.0, 0.0, 3.0, 800.0])
def test_a_score_is_a_probability(z):
    assert probability(z) == pytest.approx(float(torch.sigmoid(torch.tensor(z, dtype=torch.float64))))


def test_the_cut_keeps_probes_and_wrong_rephrasings_within_their_shares():
    torch.manual_seed(0)
    again = [
        (float(z), float(a), bool(z > -0.5)) for z, a in zip(torch.randn(400) + 2, torch.rand(400) * 3, strict=True)
    ]
    alone = [(float(z), float(a)) for z, a in zip(torch.randn(400), torch.rand(400) * 3, strict=True)]
    threshold, margin = cut(again, alone, 0.05, 0.01)

    def shares(threshold, margin):
        goes = [probability(z) >= threshold and ahead >= margin for z, ahead, *_ in [*again, *alone]]
        right = sum(g and r for g, (_, _, r) in zip(goes, again, strict=False))
        return right / 400, sum(goes[:400]) / 400 - right / 400, sum(goes[400:]) / 400

    right, wrong, strayed = shares(threshold, margin)
    assert strayed <= 0.05
    assert wrong <= 0.01
    best = max(
        shares(probability(z), m)[0]
        for z in [*(z for z, _, _ in again), *(z for z, _ in alone)]
        for m in (0.0, 0.25, 0.5, 1.0, 2.0)
        if shares(probability(z), m)[1] <= 0.01 and shares(probability(z), m)[2] <= 0.05
    )
    assert right >= best - 0.005


def test_strays_that_bring_no_rephrasing_are_left_though_they_are_allowed():
    again, alone = [(3.0, 9.0, True)] * 100, [(i / 50, 9.0) for i in range(100)]
    threshold, _ = cut(again, alone, 0.05, 0.01)
    assert probability(alone[-1][0]) < threshold <= probability(3.0)


def test_calibration_needs_rephrasings_and_takes_the_samples_probes_where_there_are_none():
    with pytest.raises(ValueError, match="none of these facts has a rephrasing"):
        fitted(Words(), FACTS)
    facts = [fact.model_copy(update={"rephrase_prompts": (fact.prompt.replace("The", "That"),)}) for fact in FACTS[:3]]
    router = Router(Words(), JUDGE)
    router.add(facts)
    router.calibrate(facts)
    assert went(router, *(fact.rephrase_prompts[0] for fact in facts)) == ["france", "egypt", "money"]
    strayed = [route for route in router.route(probes(samples())) if route.fact]
    assert len(strayed) <= 0.1 * len(probes(samples()))


def worded(again: str, alone: str) -> list[Fact]:
    """Facts whose rephrasings and probes have these words beside what they ask."""
    return [
        Fact(
            case_id=str(i),
            prompt=f"land{i} thing{i % 3}",
            target_new=str(i),
            subject=f"land{i}",
            rephrase_prompts=(f"land{i} thing{i % 3} {again.format(i)}",),
            locality={"same": (Probe(prompt=f"land{i} thing{i % 3} {alone.format(i)}", answers=("x",)),)},
        )
        for i in range(40)
    ]


def calibrated(facts: Sequence[Fact]) -> Router:
    """Among these facts, by the first half of them."""
    router = Router(Words(), JUDGE)
    router.add(facts)
    router.calibrate(facts[: len(facts) // 2], beside=samples()[:5], strays=0)
    return router


def test_a_prompt_that_is_worded_as_the_stores_probes_are_is_left_alone():
    facts = worded("whither", "yonder")
    router, others = calibrated(facts), facts[20:]
    assert went(router, *(fact.rephrase_prompts[0] for fact in others)) == [fact.case_id for fact in others]
    assert went(router, *probes(others)) == [None] * 20

    def rest(text: str) -> torch.Tensor:
        return normalize(Words()._reading(text.partition(" ")[2]).states.mean(0), dim=0)

    again, alone = torch.zeros(64), torch.zeros(64)
    for fact in facts[:20]:
        again += rest(fact.rephrase_prompts[0]) / 20
        alone += rest(probes([fact])[0]) / 20
    ahead = again - alone
    assert router.calibration.wording == pytest.approx((ahead / (ahead @ ahead)).tolist(), abs=1e-5)
    assert float(again @ torch.tensor(router.calibration.wording)) == pytest.approx(
        1 + float(alone @ torch.tensor(router.calibration.wording)), abs=1e-4
    )


def test_words_that_stand_in_one_fact_alone_say_nothing_about_others():
    told, untold = (abs(calibrated(worded(*words)).calibration.named[4]) for words in (("w", "y"), ("w{}", "y{}")))
    assert untold < 0.2 * told


def test_of_the_samples_no_wording_is_taken():
    assert fitted(Words(), worded("whither", "yonder"), beside=()).wording == ()


def test_facts_contradict_each_other_where_one_question_has_two_answers():
    a = Fact(case_id="a", prompt="X is in", target_new="Rome", subject="X", ground_truth=("Bonn",))
    assert contradict(
        a, a.model_copy(update={"prompt": "Where is X?", "target_new": "Oslo", "ground_truth": ("bonn",)})
    )
    assert not contradict(a, a.model_copy(update={"target_new": "Oslo", "ground_truth": ("tall",)}))
    assert not contradict(a, a.model_copy(update={"target_new": "Oslo", "subject": "Y"}))
    assert not contradict(a, a)


def test_question_marks_are_taken_away():
    assert plain(" Who is\n it? ") == "Who is it"


@pytest.mark.pretrained
@pytest.mark.slow
def test_the_shipped_numbers_are_those_of_the_samples_and_reach_what_they_should():
    encoder = Sentences("minilm-l6")
    router = Router(encoder)
    found = fitted(encoder, samples(), beside=())
    for ours, theirs in zip(
        found.named + found.unnamed, router.calibration.named + router.calibration.unnamed, strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-2)
    assert found.threshold == pytest.approx(router.calibration.threshold, abs=5e-3)
    router.add(samples())
    chats = [CHATS[0].replace("Who wrote Dune?", text) for fact in samples() for text in fact.rephrase_prompts]
    wanted = [fact for fact in samples() for _ in fact.rephrase_prompts]
    routes = router.route(chats)
    assert sum(route.fact == fact for route, fact in zip(routes, wanted, strict=True)) >= 0.85 * len(wanted)
    assert sum(route.fact not in (None, fact) for route, fact in zip(routes, wanted, strict=True)) <= 0.02 * len(wanted)
    assert sum(route.fact is not None for route in router.route(probes(samples()))) <= 0.05 * len(probes(samples()))


@pytest.mark.pretrained
def test_a_capital_is_not_another_countrys():
    router = Router(Sentences("minilm-l6"))
    router.add([fact for fact in samples() if fact.prompt.startswith("The capital of")])
    probe = Probe(prompt="What is the capital of Portugal?", answers=("Lisbon",))
    egypt, france, other = router.route(["What is the capital of Egypt?", "What's France's capital?", probe.prompt])
    assert france.fact is not None
    assert france.fact.subject == "France"
    assert egypt.fact is None or egypt.fact.subject == "Egypt"
    assert other.fact is None
