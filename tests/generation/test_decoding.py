"""Pieces of a text while it is written: together they are its beginning, and no character is shown by
half."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from stasc_ray.generation.decoding import TextStream
from stasc_ray.runtime import model_folder
from stasc_ray.tasks import sandbox
from stasc_ray.tasks.chat import hidden_tokens

TEXT = "na\u00efve \u6f22\u5b57, \U0001f600 \U0001f468\u200d\U0001f469, 47 he's 7"


def byte_level() -> Tokenizer:
    """As of Qwen and Llama 3: every token is a piece of UTF-8."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["hello world, is it one? "] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As of Llama 2 and Mistral (SentencePiece): a leading blank, and bytes for what the vocabulary lacks."""
    words = ["\u2581", "\u2581he", "h", "e", "s", "\u2581na", "n", "a", "v", "'", ",", "4", "7"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    blanks = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(blanks)
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return tokenizer


def tokenizers() -> dict:
    made = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}
    found = {name: PreTrainedTokenizerFast(tokenizer_object=one) for name, one in made.items()}
    return found | {"sandbox": model_folder.load_tokenizer(str(sandbox.model_path()))}


def pieces_of(tokenizer, token_ids: list[int], at_once: int = 1) -> list[str]:
    stream, whole = (
        TextStream(tokenizer, hidden_tokens(tokenizer)),
        tokenizer.decode(token_ids, skip_special_tokens=True),
    )
    pieces = []
    for end in [*range(at_once, len(token_ids), at_once), len(token_ids)]:
        pieces.append(stream.next_piece(token_ids[:end]))
        assert stream.sent == "".join(pieces) and whole.startswith(stream.sent), (token_ids, stream.sent)
    return pieces


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_a_character_of_several_tokens_is_shown_whole(name, at_once):
    tokenizer = tokenizers()[name]
    token_ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert len(token_ids) > len(TEXT), "some characters take several tokens"
    pieces = pieces_of(tokenizer, token_ids, at_once)
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces) and len([piece for piece in pieces if piece]) > 5


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback", "sandbox"])
def test_whatever_a_model_writes_its_pieces_are_the_beginning(name):
    """Also bytes that are no UTF-8, and special tokens in the middle."""
    tokenizer, chance = tokenizers()[name], random.Random(0)
    written = [number for number in range(len(tokenizer)) if number > 256] or [5]
    for _ in range(1000):
        numbers = (
            chance.randrange(len(tokenizer)) if chance.random() < 0.6 else chance.choice(written)
            for _ in range(12)
        )
        pieces_of(tokenizer, list(numbers), at_once=chance.choice([1, 2]))


def test_a_text_that_transformers_changes_after_decoding_has_no_pieces():
    cleaning = {"clean_up_tokenization_spaces": True}
    forced = {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), **cleaning, **forced)
    assert not any(pieces_of(tokenizer, tokenizer.encode("one , is it ?")))
    ignored = PreTrainedTokenizerFast(tokenizer_object=byte_level(), **cleaning)
    assert "".join(pieces_of(ignored, ignored.encode("one , is it ?"))) == "one , is it ?"


def test_a_tokenizer_in_python_has_no_pieces():
    tokenizer = ByT5Tokenizer()
    assert not any(pieces_of(tokenizer, tokenizer.encode(TEXT)))
