"""Folders of other models: what begins and ends a text, padded vocabularies, and the settings written again."""

import argparse
import copy
import json
import random
import re
import shutil

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from tests.published import TOKENIZERS
from tests.strategies import random_model
from tests.tokenizer.test_pipeline import KINDS, random_text
from tinylm.bundle import load, save_bundle
from tinylm.commands import generate_numpy
from tinylm.data.pairs import Turn
from tinylm.data.template import CHAT, PAIRS, encode_turns
from tinylm.errors import ConfigError, DataError, TinyLMError
from tinylm.evaluation.log_probs import document_ids
from tinylm.evaluation.score import score_text
from tinylm.generation import Generator, beam_search
from tinylm.generation.fast.speculative import SpeculativeGenerator
from tinylm.generation.uncached import UncachedDecoder
from tinylm.interop import export_huggingface, load_huggingface
from tinylm.model import ModelConfig, TransformerLM
from tinylm.reference import files
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, Tokenizer, load_tokenizer
from tinylm.tokenizer.base import Marks
from tinylm.tokenizer.formats.folder import read_folder
from tinylm.training.start import Start

ROWS = 600  # of the models; all tokenizers here have fewer tokens


def change(path, **fields):
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**values, **fields}), encoding="utf-8")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with a small Llama of random weights, without a tokenizer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=ROWS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("weights")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    change(folder / "config.json", bos_token_id=0, eos_token_id=1)
    return folder


@pytest.fixture
def folder(weights, tmp_path):
    """folder(kind) gives a folder with that model and a tokenizer of this kind."""

    def folder(kind="Llama 2", **settings):
        shutil.copytree(weights, tmp_path / "model", dirs_exist_ok=True)
        KINDS[kind]().save(str(tmp_path / "model" / "tokenizer.json"))
        change(tmp_path / "model" / "tokenizer_config.json", bos_token="<s>", eos_token="</s>", **settings)
        return tmp_path / "model"

    return folder


# --- what begins a text


@pytest.mark.parametrize(
    ("kind", "settings", "begin"),
    [
        ("Llama 3", {}, 0),  # by the template
        ("Llama 2", {}, None),
        ("Llama 2", {"add_bos_token": True}, None),  # as transformers 5 decides
        ("Qwen2", {"add_bos_token": False}, None),
    ],
)
def test_a_text_begins_as_in_the_folders_own_tokenizer(kind, settings, begin, folder, tmp_path):
    path = folder(kind, tokenizer_class="PreTrainedTokenizerFast", **settings)
    other = transformers.AutoTokenizer.from_pretrained(path)
    model, tokenizer = load_huggingface(path)
    assert tokenizer.marks == Marks(begin, 1, (1,))
    for text in ("Once upon", "a"):
        ids = other(text)["input_ids"]
        assert Generator(model, tokenizer).prompt_ids(text) == document_ids(tokenizer, text).tolist() == ids
    export_huggingface(model, tokenizer, tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again("Once upon")["input_ids"] == other("Once upon")["input_ids"]
    found = load_huggingface(tmp_path / "again")[1]
    assert (found.options(), found.marks) == (tokenizer.options(), tokenizer.marks)


def test_an_empty_prompt_follows_the_end_of_text_where_nothing_begins_one(folder):
    model, tokenizer = load_huggingface(folder("Qwen2"))
    assert Generator(model, tokenizer).prompt_ids("") == [1]
    assert Generator(model, tokenizer).prompt_ids("a") == tokenizer.encode("a")


def test_pairs_begin_and_end_with_the_models_own_tokens(folder):
    _, tokenizer = load_huggingface(folder("Llama 3"))
    turns = [Turn("user", "Hi"), Turn("assistant", " Tom")]
    example = encode_turns(tokenizer, turns, PAIRS)
    assert example.ids.tolist() == [0, *tokenizer.encode("Hi"), *tokenizer.encode(" Tom"), 1]
    assert example.counts.tolist() == [False] * (len(tokenizer.encode("Hi")) + 1) + [True] * (
        len(tokenizer.encode(" Tom")) + 1
    )
    assert tokenizer.lacking(CHAT.special_tokens) == ["<|system|>", "<|user|>", "<|assistant|>"]
    _, tokenizer = load_huggingface(folder("Qwen2"))
    assert encode_turns(tokenizer, turns, PAIRS).ids[0] == tokenizer.encode("Hi")[0]


def test_a_tokenizer_for_training_has_its_end_of_text_as_the_only_mark(folder):
    """tinylm's training puts nothing else between documents."""
    assert load_tokenizer(folder("Llama 3")).marks == Marks(1, 1, (1,))
    assert load_tokenizer(folder("Llama 3")).origin == {}


# --- what ends a text


@pytest.mark.parametrize("where", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_the_ids_that_end_a_text_come_from_the_file_that_wins(where, folder):
    path = folder("Qwen2")
    if where == "tokenizer_config.json":
        change(path / "config.json", eos_token_id=None, bos_token_id=None)
        assert load_huggingface(path)[1].marks == Marks(None, 1, (1,))
        return
    change(path / where, eos_token_id=[2, 1])
    assert load_huggingface(path)[1].marks == Marks(None, 1, (2, 1))  # an answer ends with the tokenizer's own
    change(path / "tokenizer_config.json", eos_token=None)
    assert load_huggingface(path)[1].marks == Marks(None, 2, (2, 1))


def stopping(path, token, after=4):
    """The imported model, which says `token` after `after` tokens of the prompt `a b`, and what it says before."""
    model, tokenizer = load_huggingface(path)
    before = Generator(model, tokenizer.with_marks(None, None, ())).complete(["a b"], max_new_tokens=10, temperature=0)
    ids = before[0].ids
    with torch.no_grad():  # the token beats the one that follows
        model.head.weight[token] = model.head.weight[ids[after]] * 1.01
    return model, tokenizer, ids[:after]


def test_generation_ends_at_each_of_several_tokens_and_prints_none_of_them(folder):
    """Every decoder is tried, and transformers."""
    for token in (2, 3):
        path = folder("Qwen2")
        change(path / "generation_config.json", eos_token_id=[2, 3])
        model, tokenizer, ids = stopping(path, token)
        greedy = {"max_new_tokens": 10, "temperature": 0}
        ways = [
            Generator(model, tokenizer).complete(["a b", "Tom"], **greedy)[0],
            Generator(model, tokenizer, UncachedDecoder(model)).complete(["a b"], **greedy)[0],
            SpeculativeGenerator(model, tokenizer, model).complete(["a b"], **greedy)[0],
            SpeculativeGenerator(model, tokenizer).complete(["a b"], **greedy)[0],
            beam_search(Generator(model, tokenizer), "a b", num_beams=1, max_new_tokens=10, early_stop=True)[0],
        ]
        for found in ways:
            assert found.ids == ids and found.finished == "end" and found.text == tokenizer.decode(ids)
        assert "<|im_end|>" not in Generator(model, tokenizer).generate("a b", **greedy)
        assert "".join(Generator(model, tokenizer).stream("a b", **greedy)) == tokenizer.decode(ids)
        export_huggingface(model, tokenizer, path.parent / f"out{token}")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent / f"out{token}")
        prompt = torch.tensor([tokenizer.encode("a b")])
        said = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False)
        assert said[0, prompt.shape[1] :].tolist() == [*ids, token]


def test_min_new_tokens_holds_against_all_stops(folder):
    path = folder("Qwen2")
    change(path / "generation_config.json", eos_token_id=[2, 3])
    model, tokenizer, _ = stopping(path, 3, after=1)
    for found in (
        Generator(model, tokenizer).complete(["a b"], max_new_tokens=8, min_new_tokens=6, temperature=0)[0],
        SpeculativeGenerator(model, tokenizer).complete(["a b"], max_new_tokens=8, min_new_tokens=6, temperature=0)[0],
        beam_search(Generator(model, tokenizer), "a b", max_new_tokens=8, min_new_tokens=6)[0],
    ):
        assert len(found.ids) >= 6 and not {2, 3} & {*found.ids}
    everything = tuple(i for i in range(tokenizer.vocab_size) if i not in (2, 3))
    for options in ({}, {"num_beams": 2}):
        with pytest.raises(ConfigError, match="banned_tokens must be fewer than all tokens but the end-of-text"):
            ask = beam_search if options else Generator.complete
            prompt = "a" if options else ["a"]
            ask(Generator(model, tokenizer), prompt, banned_tokens=everything, min_new_tokens=1, **options)


# --- written again


def test_ids_and_settings_are_written_as_they_were_read(folder, tmp_path):
    path = folder("Qwen2", pad_token="<unk>")
    generation = {"bos_token_id": 0, "eos_token_id": [2, 1], "pad_token_id": 3, "do_sample": True, "temperature": 0.7}
    generation |= {"top_p": 0.8, "repetition_penalty": 1.05}
    change(path / "config.json", eos_token_id=2)
    change(path / "generation_config.json", **generation, transformers_version="4.0")
    model, tokenizer = load_huggingface(path)
    save_bundle(tmp_path / "bundle", model, tokenizer)
    export_huggingface(*load(tmp_path / "bundle"), tmp_path / "again")
    written = {
        name: json.loads((tmp_path / "again" / name).read_text())
        for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    }
    assert written["generation_config.json"] == generation
    assert (written["config.json"]["bos_token_id"], written["config.json"]["eos_token_id"]) == (0, 2)
    tokens = {name: written["tokenizer_config.json"].get(name) for name in ("bos_token", "eos_token", "pad_token")}
    assert tokens == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    assert load_huggingface(tmp_path / "again")[1] == tokenizer


def test_options_of_generation_in_the_folder_are_announced_once(folder, capsys):
    path = folder("Qwen2")
    change(path / "generation_config.json", repetition_penalty=1.05, num_beams=4)
    load_huggingface(path)
    (line,) = capsys.readouterr().err.splitlines()
    assert "repetition_penalty 1.05, num_beams 4: not used; tinylm has its own generation options" in line


@pytest.mark.parametrize("older", [False, True])
def test_texts_of_an_export_of_tinylm_begin_with_its_end_of_text(older, tmp_path):
    tokenizer = BPETokenizer([], special_tokens=[END_OF_TEXT])
    model = TransformerLM(ModelConfig(vocab_size=257, d_model=32, num_heads=4, max_seq_len=24)).eval()
    export_huggingface(model, tokenizer, tmp_path / "m")
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert settings["tinylm_texts_begin_with_bos"] is True
    assert "Every training text was preceded" in (tmp_path / "m" / "README.md").read_text()
    if older:  # without the mark
        del settings["tinylm_texts_begin_with_bos"]
        (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(settings))
    found = load_huggingface(tmp_path / "m")[1]
    assert found == tokenizer and found.marks.begin == 256
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "m")("ab")["input_ids"] == tokenizer.encode("ab")


@pytest.mark.parametrize("marks", [Marks(None, 256, (256,)), Marks(257, 256, (256, 258)), Marks(256, 256, (256,))])
def test_marks_that_were_set_by_hand_come_back(marks, tmp_path):
    tokenizer = BPETokenizer([], special_tokens=[END_OF_TEXT, "<a>", "<b>"]).with_marks(*marks)
    model = TransformerLM(ModelConfig(vocab_size=259, d_model=32, num_heads=4, max_seq_len=24)).eval()
    export_huggingface(model, tokenizer, tmp_path / "m")
    assert load_huggingface(tmp_path / "m")[1] == tokenizer


# --- padded vocabularies


@pytest.fixture
def padded(folder):
    """A model that would say its last row, which is no token, most often."""
    model, tokenizer = load_huggingface(folder("Llama 3"))
    assert tokenizer.vocab_size < model.config.vocab_size == ROWS
    with torch.no_grad():
        for row in range(tokenizer.vocab_size, ROWS):
            model.head.weight[row] = 3 * model.head.weight[row % 50 + 4]
    prompt = torch.tensor([[0, *tokenizer.encode("Tom")]])
    assert model(prompt)[0, -1].argmax() >= tokenizer.vocab_size
    return model, tokenizer


def test_rows_without_a_token_are_never_generated(padded):
    model, tokenizer = padded
    sampled = {"max_new_tokens": 30, "num_samples": 4, "seed": 0, "temperature": 2.0}
    plain = Generator(model, tokenizer).complete(["Tom"], **sampled)
    found = [
        *plain,
        *Generator(model, tokenizer).complete(["Tom"], max_new_tokens=30, temperature=0),
        *Generator(model, tokenizer, UncachedDecoder(model)).complete(["Tom"], max_new_tokens=30, temperature=0),
        *SpeculativeGenerator(model, tokenizer, model).complete(["Tom"], **sampled),
        *SpeculativeGenerator(model, tokenizer).complete(["Tom"], **sampled),
        *beam_search(Generator(model, tokenizer), "Tom", num_beams=4, num_return=4, max_new_tokens=20),
    ]
    for each in found:
        assert each.ids and max(each.ids) < tokenizer.vocab_size
        assert all(np.isfinite(each.log_probs))
    for options in ({"logit_bias": {tokenizer.vocab_size: 1.0}}, {"banned_tokens": (tokenizer.vocab_size,)}):
        with pytest.raises(ConfigError, match=f"of ids below {tokenizer.vocab_size}"):
            Generator(model, tokenizer).generate("Tom", **options)


def test_the_draft_model_may_have_other_padding(padded, tmp_path):
    model, tokenizer = padded
    small = TransformerLM(ModelConfig(vocab_size=tokenizer.vocab_size, d_model=8, num_heads=2, max_seq_len=64)).eval()
    options = {"max_new_tokens": 20, "temperature": 0}
    expected = Generator(model, tokenizer).generate("Tom", **options)
    assert SpeculativeGenerator(model, tokenizer, small).generate("Tom", **options) == expected
    tiny = TransformerLM(ModelConfig(vocab_size=9, d_model=8, num_heads=2, max_seq_len=64)).eval()
    with pytest.raises(ConfigError, match="the draft model must have the model's vocabulary"):
        SpeculativeGenerator(model, tokenizer, tiny)


def test_scores_are_those_over_all_rows(padded):
    model, tokenizer = copy.deepcopy(padded[0]).double(), padded[1]  # float32 rounds unlike in a padded batch
    ids = [0, *tokenizer.encode("Tom and Anna")]
    logits = model(torch.tensor([ids]))
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], torch.tensor(ids[1:]))
    assert score_text(model, tokenizer, "Tom and Anna").loss == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(("kind", "begin"), [("Llama 2", None), ("Llama 2", 0), ("Qwen2", 0)])
def test_bits_per_byte_count_the_bytes_of_the_text_as_it_was_given(kind, begin, folder):
    """Neither the space before it nor what NFC makes of it. Without a beginning the first token does not count."""
    model, tokenizer = load_huggingface(folder(kind))
    tokenizer, text = tokenizer.with_marks(begin, 1, (1,)), "Tom and Anna e\u0301 \u0958"
    firsts = [tokenizer.encode_with_offsets(each)[1][0, 1] if begin is None else 0 for each in (text, "Tom")]
    counts = [len(each[first:].encode()) for each, first in zip((text, "Tom"), firsts, strict=True)]
    assert score_text(model, tokenizer, text).bytes == counts[0]
    assert score_text(model, tokenizer, [text, "Tom"]).bytes == sum(counts)


def test_the_rows_are_kept_in_a_bundle_and_in_an_export(padded, tmp_path):
    model, tokenizer = padded
    save_bundle(tmp_path / "bundle", model, tokenizer)
    again, found = load(tmp_path / "bundle")
    assert found == tokenizer and again.config.vocab_size == ROWS
    export_huggingface(again, found, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(theirs.get_output_embeddings().weight, model.head.weight)
    with pytest.raises(ConfigError, match="vocab_size: tokenizer"):
        save_bundle(tmp_path / "small", TransformerLM(ModelConfig(vocab_size=9)), tokenizer)


def test_the_twin_generates_tokens_alone_and_ends_at_each_stop(padded, tmp_path, monkeypatch):
    model, tokenizer = padded
    config = ModelConfig.from_dict(model.config.to_dict() | {"qk_norm": False})
    save_bundle(tmp_path / "twin", random_model(config), tokenizer)
    files.save(files.load(tmp_path / "twin"), tmp_path / "twin" / "it.npz")
    options = argparse.Namespace(model=str(tmp_path / "twin" / "it.npz"), prompt="Tom", max_new_tokens=40, seed=0)
    vars(options).update(num_samples=3, temperature=2.0, top_k=None, top_p=None)
    said = []
    monkeypatch.setattr(Tokenizer, "until_stop", lambda self, ids: said.append(ids) or ids)
    generate_numpy.run(options)
    assert len(said) == 3 and max(map(max, said)) < tokenizer.vocab_size
    monkeypatch.undo()
    assert tokenizer.with_marks(0, 1, [7, 9]).until_stop([5, 9, 7, 5]) == [5]
    assert tokenizer.with_marks(0, 1, [7]).until_stop([5, 9, 7, 5]) == [5, 9]
    assert tokenizer.with_marks(0, 1, []).until_stop([5, 9]) == [5, 9]


@pytest.mark.parametrize("new", [2, 200])
@torch.no_grad()
def test_new_tokens_take_the_rows_without_a_token_first(new, padded, tmp_path):
    model, tokenizer = padded
    save_bundle(tmp_path / "base", model, tokenizer)
    start = Start(str(tmp_path / "base"))
    longer = start.tokenizer(tuple(f"<new {i}>" for i in range(new)))
    assert longer.vocab_size == tokenizer.vocab_size + new
    config = start.with_rows(ModelConfig.from_dict(model.config.to_dict() | {"vocab_size": longer.vocab_size}))
    network = start.network(config)
    start.check_tokenizer(longer)
    assert network.config.vocab_size == max(ROWS, longer.vocab_size)
    count, last = tokenizer.vocab_size, longer.vocab_size
    for ours, before in ((network.embedding, model.embedding), (network.head, model.head)):
        assert torch.equal(ours.weight[:count], before.weight[:count])
        assert torch.equal(ours.weight[last:], before.weight[last:])
        expected = before.weight[:count].mean(dim=0)
        torch.testing.assert_close(ours.weight[count:last], expected.expand(new, -1), rtol=0.0, atol=1e-6)


# --- vocab.json and merges.txt, by their class


def vocabulary_folder(kind, path, **settings):
    """A folder of vocab.json and merges.txt, and the tokenizer that wrote them."""
    other = KINDS[kind]()
    path.mkdir()
    other.model.save(str(path))
    values = json.loads(other.to_str())
    vocab = json.loads((path / "vocab.json").read_text(encoding="utf-8"))
    decoder = {str(token["id"]): token for token in values["added_tokens"]}
    assert vocab.keys() >= {"<s>", "</s>"}
    change(path / "tokenizer_config.json", added_tokens_decoder=decoder, **settings)
    return path, other


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Qwen2", "Qwen2Tokenizer"),
        ("Qwen2", "Qwen2TokenizerFast"),
        ("flags", "GPT2Tokenizer"),
        ("GPT-NeoX", "GPTNeoXTokenizerFast"),
    ],
)
def test_a_vocabulary_is_read_by_the_class_that_is_named(kind, name, tmp_path):
    path, other = vocabulary_folder(kind, tmp_path / "m", tokenizer_class=name)
    tokenizer, source = load_tokenizer(path), random.Random(2)
    names = [token.content for token in other.get_added_tokens_decoder().values()]
    for _ in range(300):
        text = random_text(source, names)
        assert tokenizer.encode(text, allow_special=True) == other.encode(text, add_special_tokens=False).ids


def test_a_vocabulary_without_a_template_begins_texts_where_the_settings_say_so(tmp_path):
    named = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    path, _ = vocabulary_folder("flags", tmp_path / "m", add_bos_token=True, **named)
    assert read_folder(path).marks == Marks(0, 1, (1,))
    assert transformers.AutoTokenizer.from_pretrained(path)("Tom")["input_ids"][0] == 0
    change(path / "tokenizer_config.json", bos_token=None)
    with pytest.raises(DataError, match="add_bos_token is true, but bos_token is missing"):
        read_folder(path)


def test_a_model_type_names_the_class_too(tmp_path):
    path, _ = vocabulary_folder("Qwen2", tmp_path / "m")
    change(path / "config.json", model_type="qwen2")
    assert load_tokenizer(path).normalization == "nfc"


def test_added_tokens_in_the_settings_alone_are_found(folder):
    path = folder("Qwen2")
    values = json.loads((path / "tokenizer.json").read_text())
    size = load_tokenizer(path).vocab_size
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    extra = {
        str(size): {"content": "<think>", "special": False, **flags},
        "4": {"content": values["added_tokens"][0]["content"], "special": True, **flags},
    }
    change(path / "tokenizer_config.json", added_tokens_decoder={str(size): extra[str(size)]})
    tokenizer = read_folder(path)
    assert tokenizer.encode("a<think>b") == [*tokenizer.encode("a"), size, *tokenizer.encode("b")]
    other = transformers.AutoTokenizer.from_pretrained(path)
    assert other("a<think>b")["input_ids"] == tokenizer.encode("a<think>b")


def test_a_prefix_space_in_the_settings_is_heeded(tmp_path):
    path, other = vocabulary_folder("flags", tmp_path / "m", tokenizer_class="GPT2Tokenizer", add_prefix_space=True)
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = load_tokenizer(path)
    for text in ("Tom", " Tom", "abc Tom", "[R]Tom"):
        assert tokenizer.encode(text) == other.encode(text, add_special_tokens=False).ids


@pytest.mark.slow
def test_qwens_published_vocabulary_equals_transformers_own(tmp_path):
    if not TOKENIZERS.is_dir():
        pytest.skip(f"{TOKENIZERS} is not there")
    tokenizer, other = (
        read_folder(TOKENIZERS / "qwen2.5"),
        transformers.AutoTokenizer.from_pretrained(TOKENIZERS / "qwen2.5"),
    )
    source, names = random.Random(3), [*other.get_added_vocab()]
    for _ in range(2000):
        text = random_text(source, names)
        ids = other(text)["input_ids"]
        assert tokenizer.encode(text, allow_special=True) == ids
        assert tokenizer.decode(ids) == other.decode(ids)
        assert tokenizer.encode(text) == other(text, split_special_tokens=True)["input_ids"]
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZERS / "qwen2.5" / name, tmp_path)
    with pytest.raises(
        DataError, match=r"vocab\.json: .* is a token, which GPT-2's pattern would cut; give tokenizer\.json"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["phi-2", "smollm", "gpt-neox"])
@pytest.mark.slow
def test_published_folders_are_read_with_their_settings(name):
    if not TOKENIZERS.is_dir():
        pytest.skip(f"{TOKENIZERS} is not there")
    tokenizer = read_folder(TOKENIZERS / name)
    assert tokenizer.marks.begin is None and tokenizer.end_of_text == tokenizer.special_tokens[END_OF_TEXT]


# --- malformed and foreign files

FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
BPE = {"type": "BPE", "byte_fallback": True}
END = {"SpecialToken": {"id": "</s>"}}
TEXT = {"Sequence": {"id": "A"}}
SETTINGS, JSON = "tokenizer_config.json", "tokenizer.json"
MALFORMED = {
    "an unknown setting": (SETTINGS, {"lower": True}, "lower is true"),
    "lower case": (SETTINGS, {"do_lower_case": True}, "do_lower_case is true"),
    "own code": (SETTINGS, {"auto_map": {"AutoTokenizer": "x.y"}}, "auto_map is"),
    "an end behind every text": (SETTINGS, {"add_eos_token": True}, "add_eos_token is true"),
    "a name that is no token": (SETTINGS, {"eos_token": "<end>"}, "eos_token is '<end>', which the vocab"),
    "a name that is a number": (SETTINGS, {"eos_token": 7}, "eos_token is 7"),
    "another prefix": (SETTINGS, {"add_prefix_space": False}, "add_prefix_space is false"),
    "more names": (SETTINGS, {"additional_special_tokens": ["<x>"]}, "additional_special_tokens is '<x>'"),
    "an added token elsewhere": (
        SETTINGS, {"added_tokens_decoder": {"7": {"content": "<x>", "special": True, **FLAGS}}},
        "added_tokens: '<x>': id is 7",
    ),
    "an added token without content": (SETTINGS, {"added_tokens_decoder": {"7": {}}}, "content"),
    "an id that is a name": (SETTINGS, {"added_tokens_decoder": {"x": {"content": "<x>"}}}, "tokenizer"),
    "an end beyond the vocabulary": ("config.json", {"eos_token_id": 599}, "eos_token_id is 599"),
    "an end that is a name": ("generation_config.json", {"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    "a list with a hole": ("generation_config.json", {"eos_token_id": [1, None]}, "eos_token_id is None"),
    "words that are forced": ("generation_config.json", {"forced_bos_token_id": 5}, "forced_bos_token_id is 5"),
    "tokens that are banned": ("generation_config.json", {"suppress_tokens": [5]}, r"suppress_tokens is \[5\]"),
    "an unknown step": (JSON, {"normalizer": {"type": "Precompiled"}}, "normalizer is .*Precompiled"),
    "a template with an end": (
        JSON,
        {"post_processor": {"type": "TemplateProcessing", "single": [TEXT, END]}},
        "post_processor is .*</s>",
    ),
    "another decoder": (JSON, {"decoder": {"type": "Metaspace", "replacement": "▁"}}, "decoder is .*Metaspace"),
    "no decoder": (JSON, {"decoder": None}, "decoder is null"),
    "a pre_tokenizer that cuts": (JSON, {"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer is .*Whitespace"),
    "no steps": (JSON, {"normalizer": None}, "normalizer is null"),
    "no model": (JSON, {"model": {}}, "has no model with a vocab"),
    "added tokens that are names": (JSON, {"added_tokens": ["<s>"]}, JSON),
    "a vocabulary of nothing": (
        JSON, {"added_tokens": [], "model": BPE | {"vocab": {}, "merges": []}}, "lacks"
    ),
    "bytes that are missing": (
        JSON, {"added_tokens": [], "model": BPE | {"vocab": {"<s>": 0, "</s>": 1}, "merges": []}},
        "vocab: lacks the byte <0x00>",
    ),
    "an absurd id": (
        JSON, {"added_tokens": [], "model": BPE | {"vocab": {"<s>": 0, "</s>": 10**12}, "merges": []}},
        "ids must be 2 distinct integers",
    ),
    "a negative id": (
        JSON, {"added_tokens": [], "model": BPE | {"vocab": {"<s>": 0, "</s>": -1}, "merges": []}}, "ids must be"
    ),
    "a merge of nothing": (
        JSON, {"added_tokens": [], "model": BPE | {"vocab": {"<s>": 0, "</s>": 1}, "merges": [["<s>", "b"]]}},
        "merges: '<s> b'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "fields", "problem"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_folder_is_refused_in_one_line_that_names_the_field(name, fields, problem, folder):
    path = folder("Llama 2")
    change(path / name, **fields)
    with pytest.raises(TinyLMError, match=problem) as raised:
        load_huggingface(path)
    assert raised.value.exit_code in (65, 66)
    assert re.search(r"\.json: ", str(raised.value)) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", "7", '"text"'])
def test_a_damaged_file_is_refused_in_one_line_that_names_it(name, content, folder):
    path = folder("Llama 2")
    (path / name).write_text(content)
    with pytest.raises(TinyLMError, match=name.replace(".", r"\.")) as raised:
        load_huggingface(path)
    assert raised.value.exit_code in (65, 66) and "\n" not in str(raised.value)
