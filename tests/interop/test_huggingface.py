"""Export and import against transformers: equal logits, texts, ids, and weights bit by bit."""

import copy
import random
import re
import shutil

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from scripts.bench.huggingface import MODELS as PUBLISHED
from scripts.bench.huggingface import compare, everything_in_float64, make_folder
from tests.interop.tables import EXPORTS, SHAPE
from tests.strategies import model_configs, random_ids, random_model
from tinylm.bundle import load, save_bundle
from tinylm.data.grammar.stories import stories
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.generation import Generator
from tinylm.interop import export_huggingface, load_huggingface, load_huggingface_model
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, UNKNOWN, BPETokenizer, ByteTokenizer, CharTokenizer, WordTokenizer

STORIES = "".join(stories(seed=3, count=60))
TOKENIZER = BPETokenizer.train_from_texts([STORIES], vocab_size=SHAPE["vocab_size"], special_tokens=[END_OF_TEXT])
IDS = random_ids(ModelConfig(**SHAPE), batch_size=3)


def new_model(dtype=torch.float32, **changes) -> TransformerLM:
    return random_model(ModelConfig.from_dict(SHAPE | changes), dtype=dtype)


def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """exported(row) gives our model of a documented row, theirs, and the folder; cached."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def exported(row):
        if row not in done:
            model = new_model(**EXPORTS[row][0])
            out = folder / str(len(done))
            assert export_huggingface(model, TOKENIZER, out, {"run": "r", "val/loss": 1.5}) == EXPORTS[row][1]
            done[row] = model, theirs(out), out
        return done[row]

    return exported


every_row = pytest.mark.parametrize("row", EXPORTS)


# --- export


@every_row
@torch.no_grad()
def test_transformers_gives_the_same_logits(row, exported):
    """In float64 to the last digits, once transformers computes norms, angles and scores in it, too."""
    model, other, folder = exported(row)
    assert type(other).__name__ == EXPORTS[row][1]
    expected = model(IDS)
    assert expected.std() > 0.3  # large enough to reveal a mistake
    torch.testing.assert_close(other(input_ids=IDS).logits, expected, rtol=0.0, atol=1e-5)
    expected, other = copy.deepcopy(model).double()(IDS), theirs(folder).double()
    with everything_in_float64(other):
        found = other(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)


@every_row
def test_greedy_texts_are_the_same(row, exported):
    """To the end of the context, with their cache."""
    model, other, folder = exported(row)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt in ("Once upon a time", "naïve 日本"):
        inputs = tokenizer(tokenizer.bos_token + prompt, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        new = SHAPE["max_seq_len"] - length
        found = other.generate(**inputs, max_new_tokens=new, do_sample=False)[0, length:]
        text = Generator(model, TOKENIZER).generate(prompt, max_new_tokens=new, temperature=0)
        assert text and tokenizer.decode(found, skip_special_tokens=True) == text


def test_generation_stops_at_the_same_token(tmp_path):
    model = new_model(tie_embeddings=False)
    before = Generator(model, TOKENIZER).complete(["Once"], max_new_tokens=10, temperature=0)[0].ids
    with torch.no_grad():  # <|endoftext|> beats the fifth choice
        model.head.weight[TOKENIZER.end_of_text] = model.head.weight[before[4]] * 1.01
    ours = Generator(model, TOKENIZER).complete(["Once"], max_new_tokens=10, temperature=0)[0]
    assert ours.finished == "end"
    export_huggingface(model, TOKENIZER, tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    inputs = tokenizer(tokenizer.bos_token + "Once", return_tensors="pt")
    found = theirs(tmp_path / "m").generate(**inputs, max_new_tokens=10, do_sample=False)[0]
    assert found.tolist() == [*inputs["input_ids"][0], *ours.ids, TOKENIZER.end_of_text]


@torch.no_grad()
def test_generation_samples_from_all_tokens_by_default(exported):
    model, other, _ = exported(next(iter(EXPORTS)))
    found = other.generate(IDS, max_new_tokens=1, output_scores=True, return_dict_in_generate=True)
    torch.testing.assert_close(found.scores[0], model(IDS)[:, -1], rtol=0.0, atol=1e-5)
    config = other.generation_config
    assert config.do_sample and config.eos_token_id == config.bos_token_id == TOKENIZER.end_of_text


def test_padded_batches_match_single_texts(exported):
    """Padding is at the left, and masked."""
    model, other, folder = exported(next(iter(EXPORTS)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = ["Once upon a time", "On Monday", "x"]
    inputs = tokenizer([tokenizer.bos_token + prompt for prompt in prompts], return_tensors="pt", padding=True)
    found = other.generate(**inputs, max_new_tokens=8, do_sample=False)[:, -8:]
    ours = Generator(model, TOKENIZER).complete(prompts, max_new_tokens=8, temperature=0)
    for ids, completion in zip(found.tolist(), ours, strict=True):
        assert ids[: len(completion.ids)] == completion.ids


@settings(max_examples=50, deadline=None)
@given(
    model_configs()
    | model_configs(qk_norm=st.just(False), norm_placement=st.just("pre"))
    | model_configs(bias=st.just(False), positional_encoding=st.just("rotary"), activation=st.just("swiglu"))
)
@torch.no_grad()
def test_any_config_is_exported_with_equal_logits_or_refused_by_a_field(tmp_path_factory, config):
    model, folder = random_model(config), tmp_path_factory.mktemp("any") / "m"
    try:
        export_huggingface(model, None, folder)
    except ConfigError as error:
        name, value = re.match(r"(\w+)=(\S+)", str(error)).groups()
        assert str(config.kv_heads if name == "num_kv_heads" else getattr(config, name)) == value.rstrip(":")
        assert not folder.exists()
        return
    ids = random_ids(config)
    torch.testing.assert_close(theirs(folder)(input_ids=ids).logits, model(ids), rtol=1e-5, atol=1e-5)
    shutil.rmtree(folder)


def test_bfloat16_weights_stay_bfloat16(tmp_path):
    export_huggingface(new_model(torch.bfloat16), TOKENIZER, tmp_path / "m")
    assert {weight.dtype for weight in theirs(tmp_path / "m").parameters()} == {torch.bfloat16}
    assert load_huggingface_model(tmp_path / "m").embedding.weight.dtype == torch.bfloat16


def test_export_refuses_a_tokenizer_with_more_tokens_than_the_model(tmp_path):
    with pytest.raises(ConfigError, match="vocab_size: tokenizer 256, model 255"):
        export_huggingface(new_model(vocab_size=255), ByteTokenizer(), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_model_card_has_usage_and_results(exported, monkeypatch, capsys):
    """The code of the card is executed."""
    _, _, folder = exported(next(iter(EXPORTS)))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| val/loss | 1.5 |" in card and "| d_model | 32 |" in card and "context holds 24 tokens" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert "\n# r\n" in card
    monkeypatch.chdir(folder.parent)
    exec(code, {})
    assert capsys.readouterr().out.startswith(f"{END_OF_TEXT}Once upon a time")


# --- tokenizers

KINDS = {
    "bpe gpt2": (TOKENIZER, "gpt2"),
    "bpe gpt4": (
        BPETokenizer.train_from_texts([STORIES], vocab_size=400, pattern="gpt4", special_tokens=[END_OF_TEXT, "<x>"]),
        "llama",
    ),
    "bpe words": (BPETokenizer.train_from_texts([STORIES], vocab_size=400, pattern="words"), "qwen3"),
    "byte": (ByteTokenizer([END_OF_TEXT]), "mistral"),
    "char": (CharTokenizer.train_from_texts([STORIES], special_tokens=[UNKNOWN, END_OF_TEXT]), "opt"),
    "word": (WordTokenizer.train_from_texts([STORIES]), "starcoder2"),
}
MODELS = {
    "gpt2": dict(positional_encoding="learned", norm="layernorm", activation="relu", qk_norm=False),
    "llama": dict(qk_norm=False),
    "qwen3": {},
    "mistral": dict(qk_norm=False, sliding_window=4),
    "starcoder2": dict(norm="layernorm", activation="relu", qk_norm=False),
    "opt": dict(
        positional_encoding="learned", norm="layernorm", activation="relu", qk_norm=False, norm_placement="post"
    ),
}


def random_text(source: random.Random) -> str:
    """Words, punctuation, spaces and letters of many scripts in random order."""
    parts = [
        *STORIES[:400].split(" "),
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "'ll",
        "'S",
        "123",
        "4567",
        "...",
        "<|",
        "|>",
        "\0",
    ]
    parts += ["naïve", "日本語", "한국", "👩\u200d👧", "e\u0301", "ß", "²", "\u3000", "Ωμέγα", "مرحبا", "नमस्ते"]
    return "".join(source.choice(parts) + source.choice(["", " ", ""]) for _ in range(source.randrange(9)))


@pytest.mark.parametrize("kind", KINDS)
def test_autotokenizer_gives_the_same_ids_and_texts(kind, tmp_path):
    """A thousand random texts, with and without special tokens."""
    tokenizer, family = KINDS[kind]
    model = new_model(vocab_size=tokenizer.vocab_size, **MODELS[family])
    export_huggingface(model, tokenizer, tmp_path / "m")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    source = random.Random(0)
    for _ in range(1000):
        text = random_text(source)
        ids = tokenizer.encode(text)
        assert other(text)["input_ids"] == ids
        assert other.decode(ids) == tokenizer.decode(ids)
        marked = text.join(tokenizer.special_tokens)
        assert other(marked)["input_ids"] == tokenizer.encode(marked, allow_special=True)
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    assert other.eos_token == other.bos_token == names.get(tokenizer.end_of_text)
    assert load_huggingface(tmp_path / "m")[1] == tokenizer


def test_names_of_special_tokens_can_be_encoded_as_text(tmp_path):
    export_huggingface(new_model(), TOKENIZER, tmp_path / "m")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "m", split_special_tokens=True)
    assert other(f"a{END_OF_TEXT}b")["input_ids"] == TOKENIZER.encode(f"a{END_OF_TEXT}b")


# --- import


@every_row
@torch.no_grad()
def test_an_exported_model_is_imported_bit_by_bit(row, exported):
    model, _, folder = exported(row)
    again, tokenizer = load_huggingface(folder)
    assert tokenizer == TOKENIZER and not again.training
    assert torch.equal(again(IDS), model(IDS))
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict().get(name, torch.zeros_like(weight))), name


THEIRS = dict(vocab_size=37, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=44)
THEIRS |= dict(max_position_embeddings=24, bos_token_id=None, eos_token_id=None, pad_token_id=None)
ROPE = {"rope_type": "default", "rope_theta": 500.0}
RANDOM = {
    "gpt2": transformers.GPT2Config(
        vocab_size=37, n_embd=32, n_layer=2, n_head=4, n_positions=24, bos_token_id=None, eos_token_id=None
    ),
    "gpt2, untied": transformers.GPT2Config(
        vocab_size=37, n_embd=32, n_layer=2, n_head=4, n_positions=24, n_inner=50, activation_function="gelu",
        layer_norm_epsilon=1e-3, tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    ),
    "llama": transformers.LlamaConfig(**THEIRS, num_key_value_heads=2, rope_parameters=ROPE),
    "llama, biased": transformers.LlamaConfig(
        **THEIRS, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-3
    ),
    "mistral": transformers.MistralConfig(**THEIRS, num_key_value_heads=2, sliding_window=5),
    "mistral, all": transformers.MistralConfig(**THEIRS, num_key_value_heads=1, sliding_window=None),
    "qwen3": transformers.Qwen3Config(**THEIRS, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True),
    "qwen3, window": transformers.Qwen3Config(
        **THEIRS, num_key_value_heads=2, head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=0
    ),
    "starcoder2": transformers.Starcoder2Config(**THEIRS, sliding_window=5),
    "arcee": transformers.ArceeConfig(**THEIRS, num_key_value_heads=2),
    "smollm3": transformers.SmolLM3Config(
        **THEIRS, num_key_value_heads=2, no_rope_layers=[0, 0], use_sliding_window=True, sliding_window=5
    ),
}  # fmt: skip


def random_theirs(name, dtype):
    """A model of transformers in which all weights are random, norms and biases included."""
    torch.manual_seed(0)
    config = RANDOM[name]
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter_name, weight in model.named_parameters():
        is_norm = weight.dim() == 1 and parameter_name.endswith("weight")
        torch.nn.init.normal_(weight, mean=1.0 if is_norm else 0.0, std=0.2)
    return model.to(dtype)


@pytest.mark.parametrize(("dtype", "shards"), [(torch.float32, None), (torch.bfloat16, "10KB")], ids=str)
@pytest.mark.parametrize("name", RANDOM)
@torch.no_grad()
def test_an_imported_model_is_exported_bit_by_bit(name, dtype, shards, tmp_path):
    before = random_theirs(name, dtype)
    before.save_pretrained(tmp_path / "in", **({"max_shard_size": shards} if shards else {}))
    assert len([*(tmp_path / "in").glob("*.safetensors")]) > 1 or not shards
    model = load_huggingface_model(tmp_path / "in")
    ids = random_ids(model.config)
    if dtype == torch.float32:
        torch.testing.assert_close(model(ids), before(input_ids=ids).logits, rtol=0.0, atol=1e-5)
    export_huggingface(model, None, tmp_path / "out")
    after = theirs(tmp_path / "out")
    expected = before.state_dict()
    if name == "mistral, all":
        assert type(after).__name__ == "LlamaForCausalLM"  # the same without a window
    else:
        assert type(after) is type(before)
    assert after.state_dict().keys() == expected.keys()
    for key, weight in after.state_dict().items():
        assert weight.dtype == dtype and torch.equal(weight, expected[key]), key
    if not shards:
        files = [load_file(tmp_path / way / "model.safetensors") for way in ("in", "out")]
        assert files[0].keys() == files[1].keys()
        assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_of_published_shapes_come_in_and_go_out_whole(name, tmp_path):
    """The table of docs/interop.md."""
    row = compare(name, tmp_path)
    assert row["float32"] <= 1e-4 and row["all float64"] <= 1e-10
    assert row["text"] and row["export"]


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_an_imported_folder_generates_the_same_text(name, tmp_path):
    """Also after it was saved as a model folder."""
    learned = tokenizers.ByteLevelBPETokenizer()
    learned.train_from_iterator([STORIES], vocab_size=300, special_tokens=[END_OF_TEXT], show_progress=False)
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=learned._tokenizer, eos_token=END_OF_TEXT)
    other.save_pretrained(tmp_path / "theirs")
    config = copy.deepcopy(RANDOM[name])
    config.vocab_size = len(other)
    before = transformers.AutoModelForCausalLM.from_config(config).eval()
    before.save_pretrained(tmp_path / "theirs")
    save_bundle(tmp_path / "ours", *load_huggingface(tmp_path / "theirs"))
    model, tokenizer = load(tmp_path / "ours")
    text = "Once upon a time, naïve 日本"
    assert tokenizer.encode(text) == other(text)["input_ids"]
    inputs = other("Once", return_tensors="pt")  # which begins with no other token, so neither does ours
    found = before.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=0)
    completion = Generator(model, tokenizer).generate("Once", max_new_tokens=12, temperature=0)
    assert other.decode(found[0], skip_special_tokens=True) == "Once" + completion


MASK = torch.ones(1, 1, 96, 96).tril().bool()
OLD = {  # published model -> how old files name their weights, and what else they contain
    "GPT-2": (lambda name: name.removeprefix("transformer."), {"h.0.attn.bias": MASK}),
    "Llama 2": (str, {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
    "Pythia": (
        lambda name: name.replace("lm_head", "embed_out"),
        {
            "gpt_neox.layers.0.attention.bias": MASK, "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2),
        },
    ),
    "GPT-NeoX, sequential": (lambda name: name.replace("embed_out", "lm_head"), {}),
    "TinyStories": (
        str,
        {
            "transformer.h.1.attn.attention.bias": MASK,
            "transformer.h.1.attn.attention.masked_bias": torch.tensor(-1e9),
        },
    ),
    "OPT-125M": (lambda name: name.removeprefix("model."), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
@torch.no_grad()
def test_old_files_without_prefixes_and_with_masks_are_read(name, tmp_path):
    before = make_folder(name, tmp_path / "m")
    rename, more = OLD[name]
    weights = load_file(tmp_path / "m" / "model.safetensors")
    save_file({rename(key): weight for key, weight in weights.items()} | more, tmp_path / "m" / "model.safetensors")
    ids = torch.arange(24)[None]
    found = load_huggingface_model(tmp_path / "m")(ids)
    torch.testing.assert_close(found, before(input_ids=ids).logits, rtol=0.0, atol=1e-4)


WIDE = {  # model_type -> a config of ours with heads wider than d_model / num_heads
    "qwen2": dict(qk_norm=False, qkv_bias=True),
    "mistral": dict(qk_norm=False, sliding_window=5),
    "starcoder2": dict(qk_norm=False, norm="layernorm", activation="gelu"),
    "arcee": dict(qk_norm=False, activation="relu2"),
    "smollm3": dict(qk_norm=False, layer_pattern="LN"),
    "phi": dict(qk_norm=False, norm="layernorm", activation="gelu", residual="parallel_one_norm", rotary_fraction=0.5),
    "olmo2": dict(norm_placement="output", qk_norm_width="all"),
}


@pytest.mark.parametrize("kind", WIDE)
@torch.no_grad()
def test_a_head_dim_is_exported_to_classes_that_only_read_it(kind, tmp_path):
    """Their configs have no such field, but their attention reads it."""
    model = new_model(d_head=12, num_kv_heads=2, **WIDE[kind])
    export_huggingface(model, None, tmp_path / "m")
    other = theirs(tmp_path / "m")
    assert other.config.model_type == kind
    torch.testing.assert_close(other(input_ids=IDS).logits, model(IDS), rtol=0.0, atol=1e-5)
    assert load_huggingface_model(tmp_path / "m").config.d_head == 12


def test_a_folder_without_a_tokenizer_is_refused_with_a_remedy(tmp_path):
    export_huggingface(new_model(), None, tmp_path / "m")
    with pytest.raises(
        MissingInputError, match=r"m: has no tokenizer\.json; .* the weights alone with .*load_huggingface_model"
    ):
        load_huggingface(tmp_path / "m")


def test_import_refuses_a_tokenizer_with_more_tokens_than_the_model(tmp_path):
    export_huggingface(new_model(vocab_size=257), ByteTokenizer([END_OF_TEXT]), tmp_path / "m")
    export_huggingface(new_model(), TOKENIZER, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tokenizer.json", tmp_path / "m")
    with pytest.raises(DataError, match=r"vocab_size is 257 in config\.json, but the tokenizer has 278"):
        load_huggingface(tmp_path / "m")
