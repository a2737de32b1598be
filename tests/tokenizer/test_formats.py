"""Files of other tools give the ids and text of tokenizers, transformers and tiktoken, or are refused."""

import base64
import json
import pickle
import re
from itertools import product

import pytest
import tiktoken
import tiktoken.load
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from tinylm.data.grammar.stories import stories
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.tokenizer import (
    END_OF_TEXT,
    UNKNOWN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    WordTokenizer,
    load_tokenizer,
)
from tinylm.tokenizer.alphabet import ALPHABET, BYTES
from tinylm.tokenizer.fast.blocks import Block
from tinylm.tokenizer.fast.pretokenize import DIGITS, PATTERNS, WordSplitter
from tinylm.tokenizer.formats.gpt2 import read_gpt2, write_gpt2
from tinylm.tokenizer.formats.huggingface import read_tokenizer_json, to_tokenizer_json, write_tokenizer_json
from tinylm.tokenizer.formats.steps import GPT4, spelling
from tinylm.tokenizer.formats.tiktoken import read_tiktoken, write_tiktoken

few = settings(max_examples=25, deadline=None)
SPECIAL = ["<x>", END_OF_TEXT, "<x>y", " z ", "<|日本|>"]
OWN = r"\p{Lu}?\p{Ll}+(?!\d)|\d{1,2}|'(?i:s|[td]|ll)|[^\s\p{L}]+?|[\s\S]"
MIXED = (
    "It's 2024, they'LL say; we've   12345 reasons!\n\n\tdef f(x):\r\n  naïve — “日本語” 한국어 👩\u200d👧 e\u0301 "
    "\u3000 ² ß '\u017f 'S"  # the long s equals s if case is ignored
)

# assigned characters only: the libraries' Unicode versions differ
known = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=8)
pieces = st.sampled_from([*SPECIAL, *MIXED.split(" "), "the", " little", "<", "x>", " ", "\n", "\r\n", "\0"])
texts = st.lists(known | pieces, max_size=8).map("".join)


@pytest.fixture(scope="module")
def tale() -> str:
    return "".join(stories(seed=3, count=60)) + MIXED


@pytest.fixture(scope="module")
def trained(tale, tmp_path_factory):
    """Name -> tokenizer."""
    path = tmp_path_factory.mktemp("trained") / "tokenizer.json"
    other = tokenizers.ByteLevelBPETokenizer()
    other.train_from_iterator([tale], vocab_size=400, special_tokens=SPECIAL[:3], show_progress=False)
    other.save(str(path))
    learn = BPETokenizer.train_from_texts
    gpt2 = learn([tale], vocab_size=400, special_tokens=SPECIAL)
    return {
        "no merges": BPETokenizer([]),
        "no special tokens": learn([tale], vocab_size=500),
        "gpt2": gpt2,
        "gpt4": learn([tale], vocab_size=400, pattern="gpt4", special_tokens=SPECIAL),
        "words": learn([tale], vocab_size=400, pattern="words", special_tokens=SPECIAL),
        "own": learn([tale], vocab_size=400, pattern=OWN, special_tokens=SPECIAL),
        "special tokens first": read_tokenizer_json(path),
        "holes": BPETokenizer(gpt2.merges, "gpt4", ["<x>", "<y>"], [*range(4, 772, 3), *range(900, 1039), 7000, 0]),
        "byte": ByteTokenizer(SPECIAL),
        "char": CharTokenizer.train_from_texts([tale], special_tokens=[UNKNOWN, *SPECIAL]),
        "word": WordTokenizer.train_from_texts([tale], special_tokens=["<unk>", *SPECIAL]),
    }


every = pytest.mark.parametrize(
    "name",
    [
        "no merges", "no special tokens", "gpt2", "gpt4", "words", "own", "special tokens first", "holes", "byte",
        "char", "word",
    ],
)  # fmt: skip
with_gpt2 = pytest.mark.parametrize("name", ["no merges", "no special tokens", "gpt2", "special tokens first"])
with_merges = pytest.mark.parametrize(
    "name", ["no merges", "no special tokens", "gpt2", "gpt4", "words", "own", "special tokens first", "holes"]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


# --- Hugging Face's tokenizer.json


@pytest.fixture(scope="module")
def hugging_face(trained, folder):
    """Name -> the tokenizer as `tokenizers` reads it."""
    for name, tokenizer in trained.items():
        write_tokenizer_json(tokenizer, folder / f"{name}.json")
    return {name: tokenizers.Tokenizer.from_file(str(folder / f"{name}.json")) for name in trained}


@every
def test_tokenizer_json_round_trips(name, trained, hugging_face, folder):
    assert read_tokenizer_json(folder / f"{name}.json") == load_tokenizer(folder / f"{name}.json") == trained[name]
    hugging_face[name].save(str(folder / "again.json"))
    again = read_tokenizer_json(folder / "again.json")
    assert (again.special_tokens, again.token_bytes) == (trained[name].special_tokens, trained[name].token_bytes)


@every
def test_tokenizer_json_is_written_as_tokenizers_writes_it(name, trained, hugging_face):
    written, other = to_tokenizer_json(trained[name]), json.loads(hugging_face[name].to_str())
    for values in (written, other):
        values["added_tokens"].sort(key=lambda token: token["id"])
    assert written == other


@every
@few
@given(texts, st.lists(st.integers(0, 299), max_size=10))
@example(MIXED + "".join(SPECIAL), [])
def test_tokenizers_gives_the_same_ids_and_text(name, trained, hugging_face, text, ids):
    tokenizer, other = trained[name], hugging_face[name]
    found = tokenizer.encode(text, allow_special=True)
    assert other.encode(text).ids == found
    assert other.decode(found, skip_special_tokens=False) == tokenizer.decode(found)
    ids = [token % tokenizer.vocab_size for token in ids]  # usually invalid UTF-8
    assert other.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)
    other.encode_special_tokens = True
    assert other.encode(text).ids == tokenizer.encode(text)
    other.encode_special_tokens = False


@every
def test_transformers_gives_the_same_ids_and_text(name, trained, hugging_face, folder, tale):
    transformers = pytest.importorskip("transformers")
    other = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / f"{name}.json"))
    for text in (tale, MIXED + "".join(SPECIAL), "a  , b .\0\n", ""):
        ids = trained[name].encode(text, allow_special=True)
        assert other.encode(text) == ids
        assert other.decode(ids) == trained[name].decode(ids)


def test_unknown_words_and_characters_are_errors_here_and_in_tokenizers(folder):
    for tokenizer in (CharTokenizer("ab"), WordTokenizer(["a", "b"], ["<eos>"])):
        write_tokenizer_json(tokenizer, folder / "strict.json", overwrite=True)
        assert read_tokenizer_json(folder / "strict.json") == tokenizer
        other = tokenizers.Tokenizer.from_file(str(folder / "strict.json"))
        assert other.encode("a").ids == tokenizer.encode("a") == [0]
        with pytest.raises(Exception, match=r"unk_token|UNK"):
            other.encode("c")
        with pytest.raises(DataError, match="'c'"):
            tokenizer.encode("c")


@pytest.mark.parametrize(
    "pattern", ["gpt4", "words", OWN, DIGITS, r"\p{L}+|\p{N}{2}|[^\p{L}]", r"\S++|\s++", r"[\s\S]{3}|[\s\S]"]
)
@few
@given(texts)
@example(MIXED)
def test_a_pattern_splits_text_as_in_tokenizers(pattern, text):
    other = pre_tokenizers.Split(tokenizers.Regex(spelling(pattern)), "isolated").pre_tokenize_str(text)
    assert WordSplitter(pattern).words(text) == [word for word, _ in other]


@few
@given(texts)
@example(MIXED)
@example("a  1  2b '3s 4's ²\n5 \u3000Ⅷ ٣")
def test_the_digits_pattern_splits_text_as_in_tokenizers(text):
    both = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    other = pre_tokenizers.Sequence(both).pre_tokenize_str(text)
    assert WordSplitter(DIGITS).words(text) == [text[begin:end] for _, (begin, end) in other]


@few
@given(texts)
def test_both_spellings_of_gpt4s_pattern_give_the_same_words(text):
    assert WordSplitter("gpt4").words(text) == WordSplitter(GPT4).words(text)


@pytest.mark.parametrize(
    "pattern",
    [
        r"\w+|\W", r"^a|[\s\S]", r"(?i:ss)|[\s\S]", r"(?i:SUFFIX)|[\s\S]", r"a{1,2}+|[\s\S]", r"[a-c&&[b]]|[\s\S]",
        r"[[a]b]|[\s\S]", r"(?s:.)", r"a*|[\s\S]", r"[\s\S]*", r"\x85|[\s\S]", r"(?<=a)b|[\s\S]", r"a{,2}b|[\s\S]",
        r"\b[\s\S]", r"(?=a)|[\s\S]",
    ],
)  # fmt: skip
def test_a_pattern_that_tokenizers_may_read_differently_is_not_written(pattern, tmp_path):
    with pytest.raises(ConfigError, match=r"pattern: .* may split text differently in Hugging Face's"):
        write_tokenizer_json(BPETokenizer([], pattern), tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize(
    ("tokenizer", "problem"),
    [
        (BPETokenizer([], special_tokens=["é"]), "'é' would be decoded as the bytes its characters name"),
        (ByteTokenizer(["<ÿ>"]), "'<ÿ>' would be decoded"),
        (BPETokenizer([], special_tokens=["a"]), "'a' is the name of an ordinary token"),
        (CharTokenizer("ab", ["b"]), "'b' is the name of an ordinary token"),
        (WordTokenizer(["ab"], ["ab"]), "'ab' is the name of an ordinary token"),
    ],
)
def test_ambiguous_special_tokens_are_not_written(tokenizer, problem, tmp_path):
    with pytest.raises(ConfigError, match=f"special_tokens: {problem}"):
        write_tokenizer_json(tokenizer, tmp_path / "t.json")


def changed(values, changes):
    """A deep copy with values replaced at paths such as "model.dropout" or "added_tokens.0.id"."""
    values = json.loads(json.dumps(values))
    for path, value in changes.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        inner = values
        for part in parents:
            inner = inner[part]
        inner[last] = value
    return values


PREFIXED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": GPT4}, "behavior": "Isolated", "invert": False}
BOS = {"SpecialToken": {"id": "<x>", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def template(*parts):
    return {"type": "TemplateProcessing", "single": list(parts), "pair": [], "special_tokens": {}}


def steps(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts), "processors": list(parts)}


ADDED = {"id": 256, "normalized": False, "special": True, "single_word": False, "lstrip": False, "rstrip": False}

REFUSED = {
    "a normalizer": ({"normalizer": {"type": "NFKC"}}, r'normalizer is {"type": "NFKC"}; tinylm does not support this'),
    "normalizers": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}}, "Lowercase"
    ),
    "a normalizer that replaces spaces": (
        {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}}, "normalizer is .*Replace"
    ),
    "a prefix space inside": (
        {"pre_tokenizer": steps(SPLIT, LEVEL | {"add_prefix_space": True})}, r"pre_tokenizer is .*Split"
    ),
    "byte_fallback": ({"model.byte_fallback": True}, r"normalizer is null|pre_tokenizer is .*ByteLevel"),
    "a flag that is not a boolean": ({"added_tokens.0.lstrip": "yes"}, r"added_tokens: '<x>': lstrip is \"yes\""),
    "an end token after every text": ({"post_processor": template(TEXT, BOS)}, r"post_processor is .*SpecialToken"),
    "two begin tokens": ({"post_processor": template(BOS, BOS, TEXT)}, r"post_processor is .*SpecialToken"),
    "Metaspace": ({"pre_tokenizer": {"type": "Metaspace"}}, r"pre_tokenizer is .*Metaspace"),
    "no pre_tokenizer": ({"pre_tokenizer": None}, r"pre_tokenizer is null"),
    "a Split alone": ({"pre_tokenizer": SPLIT}, r"pre_tokenizer is .*Split"),
    "two Splits": ({"pre_tokenizer": steps(SPLIT, SPLIT, LEVEL)}, r"pre_tokenizer is .*Split"),
    "two regexes": ({"pre_tokenizer": steps(SPLIT, LEVEL | {"use_regex": True})}, r"pre_tokenizer is .*Split"),
    "Removed": ({"pre_tokenizer": steps(SPLIT | {"behavior": "Removed"}, LEVEL)}, r"pre_tokenizer is .*Removed"),
    "inverted": ({"pre_tokenizer": steps(SPLIT | {"invert": True}, LEVEL)}, r"pre_tokenizer is .*\"invert\": true"),
    "a string": ({"pre_tokenizer": steps(SPLIT | {"pattern": {"String": " "}}, LEVEL)}, r"pre_tokenizer is .*String"),
    "an odd pattern": ({"pre_tokenizer": steps(SPLIT | {"pattern": {"Regex": r"\w+|\W"}}, LEVEL)}, r"pattern: "),
    "a bad pattern": ({"pre_tokenizer": steps(SPLIT | {"pattern": {"Regex": "(?:a"}}, LEVEL)}, "' is neither gpt2"),
    "WordPiece": ({"model.type": "WordPiece"}, r"model\.dropout is null|pre_tokenizer is .*ByteLevel"),
    "Unigram": ({"model.type": "Unigram"}, r"model\.continuing_subword_prefix is null"),
    "dropout": ({"model.dropout": 0.1}, r"model\.dropout is 0\.1"),
    "a subword prefix": ({"model.continuing_subword_prefix": "##"}, r'model\.continuing_subword_prefix is "##"'),
    "a word suffix": ({"model.end_of_word_suffix": "</w>"}, r'model\.end_of_word_suffix is "</w>"'),
    "a template": ({"post_processor": template(BOS, TEXT)}, r"post_processor is .*SpecialToken"),
    "a template inside": ({"post_processor": steps(LEVEL, template(BOS, TEXT))}, r"post_processor is .*SpecialToken"),
    "BERT's post_processor": ({"post_processor": {"type": "BertProcessing"}}, r"post_processor is .*BertProcessing"),
    "another decoder": ({"decoder": {"type": "WordPiece"}}, r"decoder is .*WordPiece"),
    "an unknown field": ({"model.colour": 1}, r"model\.colour is 1"),
    "an unknown step": ({"postscript": {}}, r"postscript is {}"),
    "a new version": ({"version": "2.0"}, r'version is "2\.0"'),
    "another id": ({"added_tokens.0.id": 5}, r"added_tokens: '<x>': id is 5, but Hugging Face uses 395"),
    "an id out of sequence": (
        {"added_tokens.0.id": 600, "added_tokens.0.content": "<y>"}, "'<y>': id is 600, but Hugging Face uses 400"
    ),
    "an ordinary token": (
        {"added_tokens.0.id": 32, "added_tokens.0.content": "A"}, "vocab: 'A' is an added token and an ordinary one"
    ),
    "a missing special token": ({"added_tokens": []}, r"model\.vocab: '.*' is neither merged nor an added token"),
    "a garbled special token": ({"added_tokens.0.content": "<é>", "added_tokens.0.id": 400}, "'<é>' would be decoded"),
    "no merges": ({"model.merges": []}, r"model\.vocab: '.*' is neither merged nor an added token"),
    "a merge of an unmerged pair": ({"model.merges.0": ["q", "q"]}, "no merge makes|is neither|before a merge"),
    "a merge of an unknown token": ({"model.merges.0": ["é1", "z"]}, r"merges: 'é1z' uses 'é1', which no merge makes"),
    "a merge of three": ({"model.merges.0": ["a", "b", "c"]}, "is not a Hugging Face tokenizer.json"),
    "repeated merges": ({"model.merges.1": ["h", "e"], "model.merges.2": ["h", "e"]}, "merges|vocab"),
    "no vocabulary": ({"model.vocab": {}, "added_tokens": []}, "vocab: lacks the byte '\"'"),
    "a list for a vocabulary": ({"model.vocab": []}, "is not a Hugging Face tokenizer.json"),
    "ids that are strings": ({"model.vocab.!": "0"}, "ids must be integers"),
    "a repeated id": ({"model.vocab.!": 1}, "ids must be .* distinct integers"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "problem"), REFUSED.values(), ids=REFUSED)
def test_an_unsupported_tokenizer_json_is_refused_by_field(changes, problem, trained, tmp_path):
    values = to_tokenizer_json(trained["gpt2"])
    (tmp_path / "t.json").write_text(json.dumps(changed(values, changes)))
    for read in (read_tokenizer_json, load_tokenizer):
        with pytest.raises(DataError, match=rf"t\.json: .*(?:{problem})") as raised:
            read(tmp_path / "t.json")
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_a_lone_surrogate_in_a_file_gives_a_one_line_error(tmp_path):
    values = changed(to_tokenizer_json(BPETokenizer([])), {"added_tokens": [ADDED | {"content": "\ud800"}]})
    (tmp_path / "t.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"t\.json: the text has a lone surrogate, U\+D800"):
        load_tokenizer(tmp_path / "t.json")


READ_ALIKE = {
    "merges as strings": lambda model: {"model.merges": [" ".join(pair) for pair in model["merges"]]},
    "no type": lambda model: {"model": {name: value for name, value in model.items() if name != "type"}},
    "empty affixes": lambda _: {"model.continuing_subword_prefix": "", "model.end_of_word_suffix": ""},
    "an unk_token": lambda _: {"model.unk_token": END_OF_TEXT, "model.fuse_unk": True},
    "no decoder": lambda _: {"decoder": None},
    "ByteLevel after": lambda _: {"post_processor": LEVEL},
    "a template without tokens": lambda _: {"post_processor": steps(LEVEL, template(TEXT))},
    "a Sequence of one": lambda _: {"pre_tokenizer": steps(PREFIXED | {"add_prefix_space": False})},
    "ignore_merges": lambda _: {"model.ignore_merges": True},
    "special tokens outside": lambda model: {
        "model.vocab": {name: token for name, token in model["vocab"].items() if name not in SPECIAL}
    },
}


@pytest.mark.parametrize("change", READ_ALIKE.values(), ids=READ_ALIKE)
def test_fields_that_change_no_id_are_accepted(change, trained, folder, tale):
    values = to_tokenizer_json(trained["gpt2"])
    (folder / "alike.json").write_text(json.dumps(changed(values, change(values["model"]))))
    assert read_tokenizer_json(folder / "alike.json") == trained["gpt2"]
    other = tokenizers.Tokenizer.from_file(str(folder / "alike.json"))
    text = tale + "".join(SPECIAL)
    assert other.encode(text).ids == trained["gpt2"].encode(text, allow_special=True)


def test_a_digits_pre_tokenizer_is_read(trained, folder, tale):
    both = steps({"type": "Digits", "individual_digits": True}, PREFIXED | {"add_prefix_space": False})
    values = to_tokenizer_json(trained["gpt2"]) | {"pre_tokenizer": both}
    (folder / "digits.json").write_text(json.dumps(values))
    other, text = tokenizers.Tokenizer.from_file(str(folder / "digits.json")), tale + MIXED
    assert read_tokenizer_json(folder / "digits.json").encode(text) == other.encode(text).ids


def test_ids_of_special_tokens_that_come_first_are_kept(trained):
    tokenizer = trained["special tokens first"]
    assert tokenizer.special_tokens == {"<x>": 0, END_OF_TEXT: 1, "<x>y": 2}
    assert tokenizer.token_bytes[3:6] == [b"!", b'"', b"#"]
    assert (tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.ids[:2]) == (400, 1, [3, 4])


def test_bytes_without_a_token_are_skipped_as_in_tokenizers(tmp_path):
    other = tokenizers.Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.train_from_iterator(["hello"], trainers.BpeTrainer(vocab_size=300, show_progress=False))
    other.save(str(tmp_path / "t.json"))
    tokenizer = load_tokenizer(tmp_path / "t.json")
    long = ["oh " * 1000, "x" * 100 + "he" + "y" * 100 + "llo"]
    for text in ["hello", "he!llo", "h\u0301ello, hell!", "", "!", "é", *long]:
        assert tokenizer.encode(text) == other.encode(text).ids
        assert tokenizer.encode_block(Block([text])).tolist() == other.encode(text).ids
    write_tokenizer_json(tokenizer, tmp_path / "again.json")
    assert load_tokenizer(tmp_path / "again.json") == tokenizer
    for write in (write_gpt2, write_tiktoken):
        with pytest.raises(ConfigError, match="need all 256 bytes"):
            write(tokenizer, tmp_path / "other")


def test_only_our_own_word_level_files_are_read(tmp_path):
    values = to_tokenizer_json(WordTokenizer(["a", "b"]))
    for field, kind in {"decoder": "WordPiece", "normalizer": "NFC"}.items():
        (tmp_path / "t.json").write_text(json.dumps(changed(values, {field: {"type": kind}})))
        with pytest.raises(DataError, match=rf"t\.json: {field}: a WordLevel model is read only as tinylm writes it"):
            read_tokenizer_json(tmp_path / "t.json")


# --- merges from ranks


def all_splits(ranks):
    """Yields every split of each token into two tokens, in the order of ranks, as Llama 3's file lists them."""
    for whole in sorted(ranks, key=ranks.get):
        splits = [(whole[:place], whole[place:]) for place in range(1, len(whole))]
        known = [split for split in splits if set(split) <= ranks.keys()]
        yield from sorted(known, key=lambda split: [ranks[part] for part in split])


def llama(ranks, ignore_merges=True):
    """A tokenizer.json converted from tiktoken's ranks."""
    values = to_tokenizer_json(BPETokenizer([], "gpt4"))
    model = {"model.vocab": ranks, "model.merges": list(all_splits(ranks)), "model.ignore_merges": ignore_merges}
    return changed(values, model)


def test_a_file_that_lists_every_split_of_its_tokens_gives_the_ids_of_tokenizers(trained, folder, tale):
    model = to_tokenizer_json(trained["gpt4"])["model"]
    values = llama({name: token for name, token in model["vocab"].items() if name not in SPECIAL})
    assert len(values["model"]["merges"]) > len(model["merges"])
    (folder / "llama.json").write_text(json.dumps(values))
    tokenizer = read_tokenizer_json(folder / "llama.json")
    assert tokenizer.encode(tale) == tokenizers.Tokenizer.from_str(json.dumps(values)).encode(tale).ids
    assert tokenizer.encode(tale) == trained["gpt4"].encode(tale)
    write_tiktoken(tokenizer, folder / "llama.tiktoken")
    assert read_tiktoken(folder / "llama.tiktoken", "gpt4").merges == trained["gpt4"].merges


@st.composite
def token_names(draw):
    """Draws tokens that each join two earlier ones, in that order or shuffled."""
    names = list("abcd")
    for left, right in draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=12)):
        name = names[left % len(names)] + names[right % len(names)]
        if name not in names and len(name) < 6:
            names.append(name)
    return draw(st.permutations(names[4:])) if draw(st.booleans()) else names[4:]


words = ["".join(letters) for length in (3, 4, 5) for letters in product("abcd", repeat=length)]


@few
@given(token_names(), st.booleans())
@example(["ab", "abc", "bc"], True)
@example(["bc", "abc", "ab"], True)
@example(["bc", "ab", "cd", "abcd"], False)  # abcd is never made, ...
@example(["bc", "ab", "cd", "abcd"], True)  # ... or made if it is a word
@example(["bc", "ab", "cd", "abcd", "bcd"], False)  # abcd uses a later token
def test_ranks_and_splits_of_any_tokens_are_read_exactly_or_refused(folder, tokens, ignore_merges):
    ranks = {name: token for token, name in enumerate([*ALPHABET, *tokens])}
    values = llama(ranks, ignore_merges)
    (folder / "cuts.json").write_text(json.dumps(values))
    by_bytes = {bytes(BYTES[ALPHABET.index(sign)] for sign in name): rank for name, rank in ranks.items()}
    (folder / "cuts.tiktoken").write_text(rank_lines(by_bytes))
    try:
        tokenizer = read_tokenizer_json(folder / "cuts.json")
    except DataError as error:
        assert any(word in str(error) for word in ("ignore_merges", "merges: ", "is neither merged nor"))
    else:
        other = tokenizers.Tokenizer.from_str(json.dumps(values))
        assert [tokenizer.encode(word) for word in words] == [encoding.ids for encoding in other.encode_batch(words)]
    try:
        tokenizer = read_tiktoken(folder / "cuts.tiktoken", "gpt4")
    except DataError as error:
        assert "must merge two tokens of lower rank" in str(error)
    else:
        other = tiktoken_of(folder / "cuts.tiktoken", tokenizer)
        assert [tokenizer.encode(word) for word in words] == [other.encode_ordinary(word) for word in words]


@few
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), unique=True, max_size=12))
@example([(0, 1), (1, 2), (0, 4), (3, 2), (2, 2)])  # the merge of a and bc never applies; ab and c make abc
@example([(0, 1), (1, 2), (0, 4), (2, 2), (3, 2)])  # the same, but cc is made before it
def test_any_merges_are_written_exactly_as_ranks_or_refused(folder, pairs):
    letters, merges = [BYTES.index(letter) for letter in b"abc"], []
    for pair in pairs:  # 0, 1, 2 are letters; larger numbers are merges
        left, right = (letters[part] if part < 3 else 256 + part - 3 for part in pair)
        if max(left, right) < BPETokenizer(merges).vocab_size:
            merges.append((left, right))
    tokenizer = BPETokenizer(merges)
    try:
        write_tiktoken(tokenizer, folder / "merges.tiktoken", overwrite=True)
    except ConfigError as error:
        assert "must merge two tokens" in str(error) or "merges: tiktoken would make" in str(error)
    else:
        other = tiktoken_of(folder / "merges.tiktoken", tokenizer)
        assert [tokenizer.encode(word) for word in words] == [other.encode_ordinary(word) for word in words]


# --- GPT-2's two files


@with_gpt2
@few
@given(texts)
def test_gpt2s_files_give_the_same_ids_here_and_in_tokenizers(name, trained, gpt2_files, text):
    tokenizer, (read, other) = trained[name], gpt2_files[name]
    ids = tokenizer.encode(text, allow_special=True)
    assert read.encode(text, allow_special=True) == ids
    assert read.decode(ids) == tokenizer.decode(ids)
    assert other.encode(text).ids == tokenizer.encode(text)  # the files do not mark special tokens
    assert other.decode(tokenizer.encode(text)) == text


@pytest.fixture(scope="module")
def gpt2_files(trained, folder):
    """Name -> the tokenizer as tinylm reads it, and as `tokenizers` reads it."""
    read = {}
    for name in ("no merges", "no special tokens", "gpt2", "special tokens first"):
        write_gpt2(trained[name], folder / name)
        files = [folder / name / "vocab.json", folder / name / "merges.txt"]
        assert BPETokenizer.from_gpt2(*map(str, files)) == read_gpt2(*files) == load_tokenizer(folder / name)
        read[name] = read_gpt2(*files), tokenizers.ByteLevelBPETokenizer.from_file(*map(str, files))
        assert read[name][0].special_tokens == trained[name].special_tokens
    return read


def test_gpt2s_alphabet_equals_that_of_tokenizers():
    assert sorted(ALPHABET) == sorted(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for character in map(chr, [*range(256), 0x800, 0x1F600]):
        assert level.pre_tokenize_str(character)[0][0] == "".join(ALPHABET[BYTES.index(b)] for b in character.encode())


def test_merges_without_a_header_with_windows_line_ends_are_read(trained, tmp_path):
    write_gpt2(trained["gpt2"], tmp_path)
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8").split("\n")
    assert merges[0] == "#version: 0.2"
    (tmp_path / "merges.txt").write_bytes("\r\n".join(merges[1:]).encode())
    assert load_tokenizer(tmp_path) == trained["gpt2"]


@pytest.mark.parametrize(
    ("tokenizer", "problem"),
    [
        (ByteTokenizer(), "tokenizer: GPT-2's files need kind bpe, got byte"),
        (BPETokenizer([], "gpt4"), "pattern: GPT-2's files need gpt2, got 'gpt4'"),
        (BPETokenizer([], special_tokens=["é"]), "special_tokens: 'é' is the name of an ordinary token"),
    ],
)
def test_a_tokenizer_that_gpt2s_files_cannot_represent_is_refused(tokenizer, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        write_gpt2(tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


DAMAGED = {
    "a truncated vocab": (lambda vocab, merges: (vocab[:-9], merges), r"vocab\.json: is not valid JSON"),
    "a list for a vocab": (lambda vocab, merges: ("[1, 2]", merges), r"vocab\.json: is not a vocabulary"),
    "a vocab too small": (lambda vocab, merges: ('{"a": 1}', merges), r"vocab\.json: vocab: lacks the byte '!'"),
    "ids of strings": (lambda vocab, merges: (vocab.replace(": 0", ': "0"', 1), merges), r"vocab\.json: ids must"),
    "repeated ids": (lambda vocab, merges: (vocab.replace(": 0,", ": 1,", 1), merges), r"vocab\.json: ids must be 400"),
    "one part": (lambda vocab, merges: (vocab, merges + "abc\n"), r"merges\.txt: line 141 must .*got 'abc'"),
    "three parts": (lambda vocab, merges: (vocab, merges + "a b c\n"), r"merges\.txt: line 141 must .*got 'a b c'"),
    "an unknown piece": (lambda vocab, merges: (vocab, merges + "q@q z\n"), r"merges: 'q@qz' uses 'q@q', which"),
    "no byte's name": (lambda vocab, merges: (vocab, merges + "a ☃\n"), r"merges\.txt: merges: 'a☃' uses '☃'"),
    "a new merge": (lambda vocab, merges: (vocab, merges + "q q\n"), r"json: vocab: lacks the merged token 'qq'"),
    "a repeated merge": (lambda vocab, merges: (vocab, merges + "h e\nh e\n"), r"vocab\.json: (?:merges|vocab: lacks)"),
    "a merge too early": (
        lambda vocab, merges: (vocab, "#version\na bc\nb c\na b\nab c\n"),
        r"merges\.txt: merges: 'abc' uses 'bc' before a merge makes it; reorder the merges",
    ),
    "a merge that is not too late": (
        lambda vocab, merges: (vocab, "#version\na bcd\nb c\na b\nc d\nab cd\nbc d\n"),
        r"merges\.txt: merges: 'abcd' uses 'bcd' before a merge makes it; reorder the merges",
    ),
    "not UTF-8": (lambda vocab, merges: (vocab, merges.encode("utf-16")), r"merges\.txt: is not a list of merges"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "problem"), DAMAGED.values(), ids=DAMAGED)
def test_the_error_for_damaged_gpt2_files_names_the_file_and_the_problem(damage, problem, trained, tmp_path):
    write_gpt2(trained["gpt2"], tmp_path)
    paths = [tmp_path / "vocab.json", tmp_path / "merges.txt"]
    for path, content in zip(paths, damage(*(path.read_text(encoding="utf-8") for path in paths)), strict=True):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=problem) as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


# --- tiktoken's ranks


def rank_lines(ranks):
    return "".join(f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in ranks.items())


def tiktoken_of(path, tokenizer):
    ranks = tiktoken.load.load_tiktoken_bpe(str(path))
    pattern = PATTERNS.get(tokenizer.pattern, tokenizer.pattern)
    return tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranks, special_tokens=tokenizer.special_tokens)


@pytest.fixture(scope="module", autouse=True)
def no_tiktoken_cache():
    """Disables tiktoken's cache, which is keyed by path and would return the file of an earlier test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        yield


@pytest.fixture(scope="module")
def rank_files(trained, folder):
    """Name -> the tokenizer as tinylm reads it, and as tiktoken reads it."""
    read = {}
    for name, tokenizer in trained.items():
        if isinstance(tokenizer, BPETokenizer):
            write_tiktoken(tokenizer, folder / f"{name}.tiktoken")
            again = read_tiktoken(folder / f"{name}.tiktoken", tokenizer.pattern, tokenizer.special_tokens)
            read[name] = again, tiktoken_of(folder / f"{name}.tiktoken", tokenizer)
    return read


@with_merges
@few
@given(texts)
@example(MIXED + "".join(SPECIAL))
def test_ranks_give_the_same_ids_here_and_in_tiktoken(name, trained, rank_files, text):
    tokenizer, (again, other) = trained[name], rank_files[name]
    assert again == tokenizer
    assert other.encode_ordinary(text) == tokenizer.encode(text)
    ids = tokenizer.encode(text, allow_special=True)
    if "<x>y" not in text:  # tiktoken does not always match the longest name
        assert other.encode(text, allowed_special="all") == ids
    assert other.decode(ids) == tokenizer.decode(ids)


def test_special_tokens_without_ids_follow_the_ranks(trained, rank_files, folder):
    path = folder / "gpt2.tiktoken"
    assert read_tiktoken(path, special_tokens=SPECIAL) == trained["gpt2"]
    assert read_tiktoken(path, special_tokens={"<x>": 500}).special_tokens == {"<x>": 500}
    with pytest.raises(ConfigError, match=r"ids must be .* distinct"):
        read_tiktoken(path, special_tokens={"<x>": 7})
    with pytest.raises(ConfigError, match="pattern: "):
        read_tiktoken(path, pattern="(")


A, B, C = (BYTES.index(letter) for letter in b"abc")


@pytest.mark.parametrize(
    ("tokenizer", "problem"),
    [
        (CharTokenizer("ab"), "tokenizer: tiktoken's ranks need kind bpe, got char"),
        (
            BPETokenizer([(A, B), (B, C), (A, 257)]),
            "merges: tiktoken would make 'abc' of 'ab' and 'c'",
        ),
        (
            BPETokenizer([(A, B), (B, C), (256, 257), (A, A), (259, 257)]),
            "'aabc' must merge two tokens .*got a ab c",
        ),
        (BPETokenizer([(A, B), (A, C)], ids=[*range(256), 257, 256]), "ids must increase .*got 256 for 'ac' after 257"),
    ],
)
def test_the_error_for_a_tokenizer_that_ranks_cannot_represent_names_the_token(tokenizer, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        write_tiktoken(tokenizer, tmp_path / "t.tiktoken")
    assert not (tmp_path / "t.tiktoken").exists()


BYTE_RANKS = rank_lines({bytes([byte]): rank for rank, byte in enumerate(BYTES)})
BAD_RANKS = {
    "wrong base64": (BYTE_RANKS + "YWI 256\n", "is not a file of ranks"),
    "no base64": (BYTE_RANKS + "Y*I= 256\n", "is not a file of ranks"),
    "no rank": (BYTE_RANKS + "YWI=\n", "is not a file of ranks"),
    "a rank that is no number": (BYTE_RANKS + "YWI= x\n", "is not a file of ranks"),
    "a rank below 0": (BYTE_RANKS + "YWI= -1\n", "ids must be 257 distinct integers"),
    "a repeated rank": (BYTE_RANKS + "YWI= 255\n", "ids must be 257 distinct integers"),
    "a repeated token": (BYTE_RANKS + "YWI= 256\nYWI= 257\n", "ids must be 257 distinct integers"),
    "a huge rank": (BYTE_RANKS + "YWI= 99999999999\n", "ids must be 257 distinct integers"),
    "cut off": (BYTE_RANKS[:900], "lacks the byte|is not a file of ranks"),
    "empty": ("", "integers|lacks the byte"),
    "nothing": (BYTE_RANKS + "= 256\n", "is not a file of ranks|'' must merge two tokens"),
    "three parts": (
        BYTE_RANKS + rank_lines({b"abc": 256}),
        "'abc' must merge two tokens of lower rank, got a b c",
    ),
    "not ASCII": (BYTE_RANKS + "é 256\n", "is not a file of ranks"),
}


@pytest.mark.parametrize(("content", "problem"), BAD_RANKS.values(), ids=BAD_RANKS)
def test_the_error_for_damaged_ranks_names_the_file_and_the_problem(content, problem, tmp_path):
    (tmp_path / "t.tiktoken").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"t\.tiktoken: .*(?:{problem})") as raised:
        load_tokenizer(tmp_path / "t.tiktoken")
    assert "\n" not in str(raised.value)


# --- any format


def test_load_tokenizer_recognizes_each_format(trained, tmp_path, capsys):
    tokenizer = trained["no special tokens"]
    write_tiktoken(tokenizer, tmp_path / "t.tiktoken")
    assert load_tokenizer(tmp_path / "t.tiktoken") == tokenizer
    assert "t.tiktoken does not record its pattern: assuming gpt2" in capsys.readouterr().err
    with pytest.raises(MissingInputError, match=r"has no tokenizer\.tinylm\.json, no tokenizer\.json, no vocab\.json"):
        load_tokenizer(tmp_path)

    folder = tmp_path / "folder"
    write_gpt2(trained["no merges"], folder)
    assert load_tokenizer(folder) == trained["no merges"]
    write_tokenizer_json(trained["gpt2"], folder / "tokenizer.json")
    assert load_tokenizer(folder) == trained["gpt2"]
    trained["char"].save(folder / "tokenizer.tinylm.json")
    assert load_tokenizer(str(folder)) == trained["char"]


def test_missing_files_raise_missing_input(tmp_path):
    write_gpt2(BPETokenizer([]), tmp_path)
    for read in (
        lambda: read_gpt2(tmp_path / "nowhere", tmp_path / "merges.txt"),
        lambda: read_gpt2(tmp_path / "vocab.json", tmp_path / "nowhere"),
        lambda: read_tiktoken(tmp_path / "nowhere"),
        lambda: read_tokenizer_json(tmp_path / "nowhere"),
        lambda: load_tokenizer(tmp_path / "nowhere"),
        lambda: load_tokenizer(tmp_path / "nowhere.tiktoken"),
    ):
        with pytest.raises(MissingInputError, match=r"nowhere.*: no such tokenizer file"):
            read()


@pytest.mark.parametrize("content", ['{"a": 0}', '{"model": 3}', '{"model": {}}', "3", '"vocab"'])
def test_the_error_for_other_files_lists_the_supported_formats(content, tmp_path):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match=r"t\.json: is not a tinylm tokenizer, nor a tokenizer\.json; .*tiktoken"):
        load_tokenizer(tmp_path / "t.json")


FOREIGN = {  # content, what it is, what to do
    "minbpe.model": (b"minbpe v1\n\n0\n104 101\n", "is a tokenizer of minbpe", "on the lines of a .tiktoken file"),
    "meta.pkl": (pickle.dumps({"stoi": {"a": 0}, "itos": {0: "a"}}), "is a pickle, such as nanoGPT's", "the kind char"),
    "merges.txt": (
        b"#version: 0.2\nt h\n",
        "is the list of merges alone",
        "folder that holds vocab.json and merges.txt",
    ),
    "other.txt": (
        b"#version: 0.2\nt h\n",
        "is the list of merges alone",
        "folder that holds vocab.json and merges.txt",
    ),
    "vocab.json": (b'{"a": 0, "b": 1}', "is the vocabulary alone", "folder that holds vocab.json and merges"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_the_error_for_another_programs_tokenizer_names_the_program_and_the_remedy(name, tmp_path):
    content, kind, remedy = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(name)}: {re.escape(kind)}.*; .*{re.escape(remedy)}") as raised:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("step", [None, "Whitespace", "BertPreTokenizer", "ByteLevel"])
def test_word_level_of_tokenizers_is_refused_by_its_type(step, tmp_path):
    whole = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}))
    if step is not None:
        whole.pre_tokenizer = getattr(pre_tokenizers, step)()
    whole.save(str(tmp_path / "t.json"))
    with pytest.raises(DataError, match=r"t\.json: model\.type is WordLevel, which .*as tinylm writes it"):
        load_tokenizer(tmp_path / "t.json")


def test_a_truncated_tokenizer_json_is_refused(trained, tmp_path):
    write_tokenizer_json(trained["gpt2"], tmp_path / "t.json")
    (tmp_path / "t.json").write_bytes((tmp_path / "t.json").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"t\.json: is not valid JSON"):
        load_tokenizer(tmp_path / "t.json")
