"""Reads and writes the chat template of a Hugging Face folder.

Older folders have it in tokenizer_config.json, as a text or as a list of named ones; newer ones in chat_template.jinja
(and additional_chat_templates/), some in chat_template.json. An export writes tokenizer_config.json, which all versions
of transformers read.
"""

from pathlib import Path
from typing import Any

from tinylm.errors import DataError, notice
from tinylm.files import read_chunks, read_json
from tinylm.tokenizer import Chat, Tokenizer

SETTINGS, JINJA, JSON, OTHERS = (
    "tokenizer_config.json", "chat_template.jinja", "chat_template.json", "additional_chat_templates",
)  # fmt: skip
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
# tinylm's own `data.template=chat`: data/template.py
OURS = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def read_chat_template(folder: Path) -> Chat | None:
    """The chat template of a folder; None if it has none.

    Raises:
        DataError: for a template that is not text.
    """
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if not isinstance(settings, dict):
        raise DataError(f"{folder / SETTINGS}: must be an object of settings")
    found = _named(settings.get("chat_template"), folder / SETTINGS)
    if (folder / JSON).is_file():
        values = read_json(folder / JSON)
        found = _named(values.get("chat_template") if isinstance(values, dict) else values, folder / JSON)
    files = {path.stem: path for path in sorted((folder / OTHERS).glob("*.jinja"))}
    if (folder / JINJA).is_file():
        files["default"] = folder / JINJA
    found |= {name: "".join(read_chunks(path)) for name, path in files.items()}
    if not found:
        return None
    if "default" not in found:
        notice(f"{folder}: has chat templates for {', '.join(found)} only, which are not kept: none is the default")
        return None
    names = {name: _token(settings[name], name, folder) for name in NAMES if settings.get(name) is not None}
    return Chat(found.pop("default"), names, found)


def chat_settings(tokenizer: Tokenizer, info: dict[str, Any]) -> dict[str, Any]:
    """The fields of tokenizer_config.json with which transformers formats conversations as in the model's training."""
    chat = tokenizer.chat
    if chat is not None and chat.others:
        templates = [
            {"name": name, "template": text} for name, text in ({"default": chat.template} | chat.others).items()
        ]
        return {**chat.names, "chat_template": templates}
    if chat is not None:
        return {**chat.names, "chat_template": chat.template}
    return {"chat_template": OURS} if info.get("template") == "chat" else {}


def _named(value: Any, path: Path) -> dict[str, str]:
    """Templates by name, from a text or a list of objects with a name and a template."""
    entries = {"default": value} if isinstance(value, str) else {}
    if isinstance(value, list) and all(
        isinstance(each, dict) and {"name", "template"} <= each.keys() for each in value
    ):
        entries = {each["name"]: each["template"] for each in value}
    whole = all(isinstance(each, str) for pair in entries.items() for each in pair)
    if not whole or (not entries and value not in (None, [])):
        raise DataError(f"{path}: chat_template must be a text, or a list of objects with a name and a template")
    return entries


def _token(value: Any, name: str, folder: Path) -> str:
    """The name of a special token, which may be an object with its properties."""
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise DataError(f"{folder / SETTINGS}: {name} must be the name of a token, got {str(value)[:80]}")
    return content
