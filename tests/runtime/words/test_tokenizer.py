"""A word of which the tokenizer knows no part is refused by name: it would share one vector with all such words."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from fusioner_rt import Session
from fusioner_rt.cli import main
from fusioner_rt.errors import ManifestInvalid, WordUnreadable
from fusioner_rt.words.tokenizer import PromptTokenizer


@pytest.fixture
def table(tmp_path: Path) -> PromptTokenizer:
    """Three names and no sentences."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "sofa": 1, "soda": 2, "dining table": 3}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return PromptTokenizer(tmp_path / "tokenizer.json", max_tokens=1)


@pytest.fixture
def by_bytes(tmp_path: Path) -> PromptTokenizer:
    """As CLIP's: every byte has a token, and the end of text stands as the unknown one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([*alphabet, "<end_of_text>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<end_of_text>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return PromptTokenizer(tmp_path / "tokenizer.json", max_tokens=77)


@pytest.mark.parametrize("word", ["猫", "🦄", "猫 🐙"])
def test_a_word_of_unknown_tokens_alone_is_refused_before_the_text_encoder_runs(tiny_bundle: Path, word: str) -> None:
    session = Session(tiny_bundle)
    with pytest.raises(WordUnreadable, match=f"cannot read '{word}': no part of it.*use another word"):
        session.set_vocabulary(["cat", word])
    assert session.text_encoder_calls == 0


def test_a_word_with_one_known_part_is_taken(tiny_bundle: Path) -> None:
    Session(tiny_bundle).set_vocabulary(["猫 cat", "sofa"])


def test_the_command_line_exits_with_the_words_own_code(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert main(["segment", "--engine", str(tiny_bundle), str(tmp_path / "a.png"), "--words", "猫"]) == 23
    assert "cannot read '猫'" in capsys.readouterr().err


@pytest.mark.parametrize("model", [models.WordPiece({}), models.WordLevel({"cat": 0}), models.Unigram([("cat", 0.0)])])
def test_a_tokenizer_that_lacks_the_unknown_token_is_named_where_it_needs_it(tmp_path: Path, model: object) -> None:
    path = tmp_path / "tokenizer.json"
    Tokenizer(model).save(str(path))
    tokenizer = PromptTokenizer(path, max_tokens=8)
    for ask in (tokenizer.reads, tokenizer.pieces, tokenizer.check, lambda word: tokenizer.ids([word])):
        with pytest.raises(
            ManifestInvalid, match=r"tokenizer.json: as a tokenizer, cannot read 'zebra' .*; rebuild the bundle"
        ):
            ask("zebra")


def test_bytes_read_every_word(by_bytes: PromptTokenizer) -> None:
    for word in ("cat", "猫", "🦄", "naïve"):
        by_bytes.check(word, [f"a photo of a {word}"])


def test_a_table_offers_near_names_for_one_it_has_not(table: PromptTokenizer) -> None:
    table.check("Sofa", ["Sofa"])
    assert table.names() == ["dining table", "soda", "sofa"]
    with pytest.raises(WordUnreadable, match=r"table of 3 names.*near ones are: sofa, soda$"):
        table.check("SOFAA")
    with pytest.raises(WordUnreadable, match="no name in it is near"):
        table.check("猫")


def test_a_table_takes_no_template(table: PromptTokenizer) -> None:
    with pytest.raises(WordUnreadable, match=r"'a photo of a sofa'.*leave the templates"):
        table.check("sofa", ["sofa", "a photo of a sofa"])
