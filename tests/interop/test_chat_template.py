"""Chat templates of Hugging Face folders: read from all their files, kept in ours, and exported again."""

import json

import pytest
import torch
import transformers

from tests.data.test_chat_template import CHATML, CONVERSATION, LLAMA3, MISTRAL, NAMES, SPECIAL, messages
from tests.interop.tables import SHAPE
from tests.strategies import random_model
from tinylm.bundle import load, save_bundle
from tinylm.data import CHAT, encode_turns
from tinylm.data.grammar.stories import stories
from tinylm.errors import DataError
from tinylm.interop import export_huggingface, load_huggingface
from tinylm.interop.chat_template import read_chat_template
from tinylm.model import ModelConfig
from tinylm.tokenizer import BPETokenizer, Chat

TEXT = "".join(stories(seed=3, count=40))
TOKENIZER = BPETokenizer.train_from_texts([TEXT], vocab_size=400, special_tokens=SPECIAL)


@pytest.fixture
def folder(tmp_path):
    """An exported model without a chat template."""
    model = random_model(ModelConfig(**SHAPE | {"vocab_size": 400}), dtype=torch.float32)
    export_huggingface(model, TOKENIZER, tmp_path / "hf")
    return tmp_path / "hf"


def write_settings(folder, **fields) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


LAYOUTS = {
    "a text": {"tokenizer_config.json": CHATML},
    "a list": {"tokenizer_config.json": [dict(name="tool_use", template="t"), dict(name="default", template=CHATML)]},
    "a file of its own": {"chat_template.jinja": CHATML},
    "a file that replaces a text": {"chat_template.jinja": CHATML, "tokenizer_config.json": MISTRAL},
    "JSON": {"chat_template.json": CHATML},
    "files for other purposes": {"chat_template.jinja": CHATML, "additional_chat_templates/tool_use.jinja": "t"},
}  # fmt: skip


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS)
def test_a_chat_template_is_never_lost_on_the_way_through(files, folder, tmp_path):
    """Hugging Face folder -> model -> model folder -> Hugging Face folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if name == "tokenizer_config.json":
            write_settings(folder, chat_template=content)
        elif name == "chat_template.json":
            (folder / name).write_text(json.dumps({"chat_template": content}))
        else:
            (folder / name).write_text(content)
    model, tokenizer = load_huggingface(folder)
    assert tokenizer.chat.template == CHATML
    save_bundle(tmp_path / "ours", model, tokenizer)
    model, tokenizer = load(tmp_path / "ours")
    export_huggingface(model, tokenizer, tmp_path / "again")
    first, last = (transformers.AutoTokenizer.from_pretrained(each) for each in (folder, tmp_path / "again"))
    wanted = first.chat_template if files != LAYOUTS["JSON"] else CHATML  # transformers reads that for processors only
    assert last.chat_template == wanted
    assert last.special_tokens_map == first.special_tokens_map
    expected = last.apply_chat_template(messages(CONVERSATION), tokenize=False, chat_template=CHATML)
    assert last.apply_chat_template(messages(CONVERSATION), tokenize=False) == expected


def test_tokens_that_a_template_names_are_kept(folder, tmp_path):
    write_settings(folder, chat_template=LLAMA3, bos_token={"content": "<s>", "lstrip": False}, eos_token="</s>")
    model, tokenizer = load_huggingface(folder)
    assert tokenizer.chat == Chat(LLAMA3, NAMES | {"pad_token": "<|endoftext|>"}, {})
    export_huggingface(model, tokenizer, tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert (again.bos_token, again.eos_token) == ("<s>", "</s>")


def test_a_model_of_our_own_chats_is_exported_with_a_template_of_the_same_ids(folder, tmp_path):
    tokenizer = TOKENIZER.with_special_tokens(CHAT.special_tokens)
    model = random_model(ModelConfig(**SHAPE | {"vocab_size": tokenizer.vocab_size}), dtype=torch.float32)
    export_huggingface(model, tokenizer, tmp_path / "chat", {"template": "chat"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "chat")
    ids = theirs.apply_chat_template(messages(CONVERSATION), tokenize=True, return_dict=True)["input_ids"]
    assert ids == encode_turns(tokenizer, CONVERSATION, CHAT).ids.tolist()
    assert transformers.AutoTokenizer.from_pretrained(folder).chat_template is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chat_template": 3}, "tokenizer_config.json: chat_template must be a text, or a list of objects"),
        ({"chat_template": [{"name": "default"}]}, "chat_template must be a text, or a list"),
        ({"chat_template": CHATML, "eos_token": 3}, "eos_token .*3"),
    ],
)
def test_a_template_of_another_form_is_refused_by_name(fields, message, folder):
    write_settings(folder, **fields)
    with pytest.raises(DataError, match=message):
        load_huggingface(folder)


def test_templates_without_a_default_are_reported(folder, capsys):
    write_settings(folder, chat_template=[{"name": "rag", "template": CHATML}])
    assert read_chat_template(folder) is None
    assert "has chat templates for rag only, which are not kept" in capsys.readouterr().err
