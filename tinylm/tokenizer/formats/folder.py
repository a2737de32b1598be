"""Hugging Face model folders: tokenizer.json, vocab.json with merges.txt or vocab.txt, and their settings.

    tokenizer_config.json     more added tokens, add_prefix_space, and the class that reads vocab.json
    config.json               the ids that begin and end a text
    generation_config.json    the same ids, with precedence, and the ids that end generation

Only listed settings are accepted: any other field is refused by name, unless it is empty.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinylm.errors import ConfigError, DataError, notice
from tinylm.files import read_json
from tinylm.tokenizer.alphabet import ALPHABET, BYTES
from tinylm.tokenizer.base import END_OF_TEXT, Tokenizer
from tinylm.tokenizer.fast.pretokenize import QWEN2, WordSplitter
from tinylm.tokenizer.formats.huggingface import from_tokenizer_json, is_tokenizer_json
from tinylm.tokenizer.formats.merges import NamedMerges, reading, require
from tinylm.tokenizer.formats.steps import FLAGS, read_template, type_of, unknown
from tinylm.tokenizer.formats.vocab_txt import (
    BERTS_SETTINGS,
    VOCABULARY,
    check_settings,
    has_vocab_txt,
    vocab_txt_values,
)
from tinylm.tokenizer.pipeline import PipelineTokenizer

TOKENIZER, SETTINGS, CONFIG, GENERATION = (
    "tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"
)  # fmt: skip
BEGINS = "tinylm_texts_begin_with_bos"  # in exports of tinylm: whether training texts began with bos_token
TOKENIZER_CONFIG = {  # nothing is added to a text or cleaned up
    "tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"],
    "clean_up_tokenization_spaces": False, "padding_side": "left",
}  # fmt: skip
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

# --- fields

KNOWN_SETTINGS = {
    *NAMED, *LISTED, *TOKENIZER_CONFIG, BEGINS, "add_bos_token", "add_eos_token", "add_prefix_space",
    "added_tokens_decoder", "backend", "chat_template", "errors", "is_local", "legacy", "local_files_only",
    "max_length", "model_max_length", "model_specific_special_tokens", "name_or_path", "pad_to_multiple_of",
    "pad_token_type_id", "processor_class", "return_token_type_ids", "sp_model_kwargs",
    "spaces_between_special_tokens", "special_tokens_map_file", "split_special_tokens", "stride", "tokenizer_file",
    "transformers_version", "truncation", "truncation_side", "truncation_strategy", "trust_remote_code",
    "unsloth_version", "use_default_system_prompt", "use_fast", "vocab_size", "padding", "max_len",
}  # fmt: skip


def _check_known(values: Mapping[str, Any], known: set[str]) -> None:
    for name, value in values.items():
        if name not in known and value not in (None, False, 0, "", [], {}):
            raise unknown(name, value)


# --- reading


def read_folder(folder: str | Path) -> Tokenizer:
    """Reads the tokenizer of a Hugging Face model folder, with the marks of the model.

    `marks.begin` is the token that the folder's tokenizer puts before a text. In a folder that tinylm exported, it is
    the token that preceded every training text.

    Raises:
        MissingInputError: if there is no tokenizer.
        DataError: if a file is damaged, or has an unsupported field that would change ids; with its name.
    """
    folder = Path(folder)
    settings, config, generation = (_read(folder / name) for name in (SETTINGS, CONFIG, GENERATION))
    if (folder / TOKENIZER).is_file():
        source = folder / TOKENIZER
        values = read_json(source)
    elif not (folder / "vocab.json").is_file() and has_vocab_txt(folder):
        source = folder / VOCABULARY
        values = vocab_txt_values(source, settings)
    else:
        source = require(folder / "vocab.json")
        values = _from_vocabulary(folder, settings, config)
    if not is_tokenizer_json(values):
        raise DataError(f"{source}: is not a Hugging Face tokenizer.json (it has no model with a vocab)")
    with reading(folder / SETTINGS, "a tokenizer_config.json"):
        wordpiece = type_of(values["model"]) == "WordPiece"
        _check_known(settings, KNOWN_SETTINGS | BERTS_SETTINGS if wordpiece else KNOWN_SETTINGS)
        if wordpiece and source.name == TOKENIZER:
            check_settings(settings, values.get("normalizer"))
        begin, end = read_template(values.get("post_processor"))
        if settings.get("add_eos_token") and end is None:
            raise unknown("add_eos_token", True)
        values = _with_settings(values, settings)
    tokenizer = from_tokenizer_json(values, str(source))
    with reading(folder / SETTINGS, "a tokenizer_config.json"):
        _check_prefix(tokenizer, settings)
        if source.name not in (TOKENIZER, VOCABULARY):
            begin = _begin(tokenizer, settings)
        elif (asked := settings.get("add_bos_token")) is not None and asked != (begin is not None):
            notice(f"{folder / SETTINGS}: add_bos_token={asked} is overruled by {TOKENIZER}, as in transformers 5")
    return _marked(tokenizer, folder, begin, settings, config, generation)


def _marked(
    tokenizer: Tokenizer, folder: Path, begin: int | None, settings: dict, config: dict, generation: dict
) -> Tokenizer:
    """The tokenizer with the marks of the folder's model."""
    if _is_older(settings):
        return tokenizer
    stops = _stops(folder, tokenizer, config, generation, settings)
    with reading(folder / SETTINGS, "a tokenizer_config.json"):
        end = _id_of(tokenizer, settings, "eos_token")
        if BEGINS in settings:
            begin = _id_of(tokenizer, settings, "bos_token") if settings[BEGINS] else None
    template = tokenizer.origin.get("template", begin is not None)
    if isinstance(template, dict):
        end = tokenizer.marks.end  # the template puts it after a text
    elif stops and end not in stops:
        end = stops[0]
    marked = tokenizer.with_marks(begin, end, stops or (() if end is None else (end,)))
    if BEGINS in settings:
        return marked
    return marked.with_origin(_origin(settings, config, generation, template))


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has files that `read_folder` reads."""
    pair = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    return pair or (folder / TOKENIZER).is_file() or has_vocab_txt(folder)


def _read(path: Path) -> dict[str, Any]:
    """The content of a JSON file of settings; empty if there is no such file."""
    values = read_json(path) if path.is_file() else {}
    with reading(path, "a file of settings"):
        if not isinstance(values, dict):
            raise ConfigError("must be an object with fields")
    return values


def _is_older(settings: Mapping[str, Any]) -> bool:
    """Whether these are exactly the settings that earlier versions of tinylm wrote, without `BEGINS`."""
    plain = {name: value for name, value in settings.items() if name in TOKENIZER_CONFIG}
    tokens = {name: value for name, value in settings.items() if name not in TOKENIZER_CONFIG}
    tokens.pop("model_max_length", None)
    return plain == TOKENIZER_CONFIG and tokens in ({}, dict.fromkeys(NAMED[:3], END_OF_TEXT))


def _begin(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> int | None:
    """The id before every text, by the settings of a folder without tokenizer.json."""
    if not settings.get("add_bos_token"):
        return None
    begin = _id_of(tokenizer, settings, "bos_token")
    if begin is None:
        raise ConfigError("add_bos_token is true, but bos_token is missing")
    return begin


def _stops(folder: Path, tokenizer: Tokenizer, config: dict, generation: dict, settings: dict) -> tuple[int, ...]:
    """The ids that end generation, by generation_config.json, else config.json, else the tokenizer."""
    for name, values in ((GENERATION, generation), (CONFIG, config)):
        found = values.get("eos_token_id")
        if found is None:
            continue
        found = found if isinstance(found, list) else [found]
        with reading(folder / name, "a file of settings"):
            for each in found:
                if type(each) is not int or not 0 <= each < tokenizer.vocab_size:
                    raise ConfigError(f"eos_token_id is {each!r}, but the tokenizer has {tokenizer.vocab_size} tokens")
        return tuple(dict.fromkeys(found))
    with reading(folder / SETTINGS, "a tokenizer_config.json"):
        end = _id_of(tokenizer, settings, "eos_token")
    return tokenizer.marks.stops if end is None else (end,)


def _id_of(tokenizer: Tokenizer, settings: Mapping[str, Any], field: str) -> int | None:
    """The id of the token in a field of the settings."""
    name = _content(settings.get(field), field)
    return None if name is None else tokenizer.special_tokens[name]


def _content(token: Any, field: str) -> str | None:
    """The string of a token, which is given as a string or as an object with options."""
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and (not isinstance(content, str) or not content):
        raise unknown(field, token)
    return content


def _origin(settings: dict, config: dict, generation: dict, template: Any) -> dict[str, Any]:
    """The settings that exports write again."""
    tokens = {*NAMED, *LISTED, "add_bos_token", "add_prefix_space"}
    names = {name: value for name, value in settings.items() if name in tokens}
    generation = {name: value for name, value in generation.items() if name != "transformers_version"}
    found = {CONFIG: {name: config[name] for name in IDS if name in config}, GENERATION: generation, SETTINGS: names}
    found["template"] = template
    return {name: value for name, value in found.items() if value}


# --- settings that change a tokenizer.json


def _with_settings(values: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json with added tokens and prefix from tokenizer_config.json, as transformers combines them."""
    values = dict(values)
    vocab, listed = values["model"]["vocab"], values.get("added_tokens") or []
    if not isinstance(vocab, dict) or not all(isinstance(token, dict) and "content" in token for token in listed):
        return values  # the reader of tokenizer.json reports the problem
    added = {token["content"]: token for token in listed}
    decoder = settings.get("added_tokens_decoder") or {}
    for token, given in sorted(decoder.items(), key=lambda item: int(item[0])):
        flags = {flag: given.get(flag, flag in ("special", "normalized")) for flag in FLAGS}
        added[given["content"]] = {"id": int(token), "content": given["content"], **flags}
    listed = [(name, each) for name in LISTED for each in settings.get(name) or []]
    for field, token in [*((name, settings.get(name)) for name in NAMED), *listed]:
        content = _content(token, field)
        if content in added:
            added[content] = added[content] | {"special": True}
        if content is None or content in added:
            continue
        if content not in vocab:
            raise ConfigError(f"{field} is {content!r}, which the vocabulary lacks")
        plain = dict.fromkeys(FLAGS, False) | {"special": True}
        added[content] = {"id": vocab[content], "content": content, **plain}
    values["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
    level, prefix = values.get("pre_tokenizer"), settings.get("add_prefix_space")
    if isinstance(level, dict) and level.get("type") == "ByteLevel" and prefix is not None:
        values["pre_tokenizer"] = level | {"add_prefix_space": prefix}
    return values


def _check_prefix(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Refuses an `add_prefix_space` that the tokenizer does not follow."""
    given = settings.get("add_prefix_space")
    prefix = tokenizer.prefix if isinstance(tokenizer, PipelineTokenizer) else "none"
    if given not in (None, prefix != "none"):
        raise ConfigError(f"add_prefix_space is {str(given).lower()}, unlike tokenizer.json; make the two agree")


# --- vocab.json and merges.txt

LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SPLIT = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
GPT2 = {"normalizer": None, "pre_tokenizer": LEVEL | {"use_regex": True}}
NFC = {"type": "NFC"}
CLASSES = {  # class of transformers -> its steps around vocab.json and merges.txt
    "GPT2Tokenizer": GPT2,
    "CodeGenTokenizer": GPT2,
    "GPTNeoXTokenizer": GPT2 | {"normalizer": NFC},
    "Qwen2Tokenizer": {
        "normalizer": NFC,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, LEVEL | {"use_regex": False}]},
    },
}
MANY = 20_000  # tokens; among so many, GPT-2's pattern would give some with several digits
MODELS = {
    "codegen": "CodeGenTokenizer", "gpt2": "GPT2Tokenizer", "gpt_neo": "GPT2Tokenizer", "gpt_neox": "GPTNeoXTokenizer",
    "phi": "CodeGenTokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer",
}  # fmt: skip


def _from_vocabulary(folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json equivalent to vocab.json and merges.txt.

    Vocabulary entries that are neither bytes nor merged tokens become special tokens.
    """
    vocab, merges = read_json(folder / "vocab.json"), require(folder / "merges.txt")
    with reading(merges, "a list of merges"):
        table = NamedMerges.from_merges_txt(merges)
    with reading(folder / "vocab.json", "a vocabulary"):
        others = sorted((name for name in vocab if name not in table), key=vocab.__getitem__)
        plain = dict.fromkeys(FLAGS, False) | {"special": True}
        added = [{"id": vocab[name], "content": name, **plain} for name in others]
        steps = CLASSES[_class(settings, config, table.names, vocab)]
    merged = [[table.names[left], table.names[right]] for left, right in table.merges]
    model = {"type": "BPE", "vocab": vocab, "merges": merged}
    return {"version": "1.0", "added_tokens": added, "decoder": LEVEL, "model": model, **steps}


def _class(settings: Mapping[str, Any], config: Mapping[str, Any], names: list[str], vocab: dict[str, int]) -> str:
    """The class that reads vocab.json: the named one, else the model's, else GPT-2's if the tokens allow it."""
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    model = config.get("model_type")
    found = str(named).removesuffix("Fast") if named else MODELS.get(str(model)) if model else "GPT2Tokenizer"
    if found not in CLASSES:
        what = f"tokenizer_class is {named!r}" if named else f"tokenizer_class is missing, and model_type is {model!r}"
        raise ConfigError(f"{what}; tinylm reads vocab.json for {', '.join(CLASSES)}; save a tokenizer.json")
    if not named and not model and (evidence := _unlike_gpt2(names, vocab)):
        raise ConfigError(f"{evidence}; give tokenizer.json, or tokenizer_config.json with the tokenizer_class")
    return found


def _unlike_gpt2(names: list[str], vocab: dict[str, int]) -> str | None:
    """The reason why a vocabulary was not made with GPT-2's pattern; None if it may have been."""
    splitter, numbers = WordSplitter("gpt2"), False
    if missing := [name for name in ALPHABET if name not in vocab]:
        return f"vocab: lacks the byte {missing[0]!r}, unlike GPT-2's"
    for name in names:
        text = bytes(map(BYTES.__getitem__, map(ALPHABET.index, name))).decode("utf-8", "ignore")
        if len(splitter.words(text)) > 1 and not text.startswith("'"):
            return f"{text!r} is a token, which GPT-2's pattern would cut"
        numbers = numbers or (len(text) > 1 and text.isdigit())
    return None if numbers or len(names) < MANY else "no token has two digits, which GPT-2's pattern would not cut"
