"""The model card: README.md of an exported folder, with usage, the run's figures, and how to repeat the run."""

from typing import Any

from tinylm.interop.families import Family
from tinylm.model import ModelConfig, parameter_count
from tinylm.runs.provenance import ENTRY, code_and_versions
from tinylm.tokenizer import Tokenizer

HEADER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- tinylm
---

# {title}

A language model with {parameters:,} parameters, trained with tinylm and exported as a {architecture} of transformers.
"""
USAGE = """
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}")
inputs = tokenizer({begin}"Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens={new_tokens})[0]))
```
"""
WITH_END = """
Every training text was preceded and followed by `{end}`. Put it before a prompt, as above. Within a text, the name of a
special token is read as that token, unless `split_special_tokens=True`.
"""
IMPORTED = """
The tokenizer adds the token that begins a text, so give it only the prompt. Generation ends at {stops}.
"""
WITHOUT_END = """
The tokenizer has no end-of-text token. A prompt must not be empty, and generation stops only at its limit.
"""
CONTEXT = """
The context holds {context} tokens, prompt and completion together. {beyond}
"""

CHAT = """
The tokenizer has a chat template: `tokenizer.apply_chat_template(messages, add_generation_prompt=True)`.
"""
AGAIN = """
## Repeat the run

Save this as `config.yaml`, next to the data that it names, and run `tinylm fit -c config.yaml`:

```yaml
{config}
```
"""
RUN_CONFIG = "config.yaml"  # the entry of `info` with the text of the run's config


def model_card(
    config: ModelConfig, family: Family, tokenizer: Tokenizer | None, folder: str, info: dict[str, Any]
) -> str:
    """The text of README.md in a folder of this name."""
    title = str(info.get("run", folder))
    parts = [HEADER.format(title=title, parameters=parameter_count(config), architecture=family.architecture)]
    if tokenizer is not None:
        own = tokenizer.marks.begin is not None and not tokenizer.imported
        begin = "tokenizer.bos_token + " if own else ""
        parts.append(USAGE.format(folder=folder, begin=begin, new_tokens=min(100, max(config.max_seq_len // 2, 1))))
        parts.append(_ends(tokenizer))
    learned = config.positional_encoding == "learned"
    beyond = "There are no positions beyond it." if learned else "The model was not trained beyond it."
    parts.append(CONTEXT.format(context=config.max_seq_len, beyond=beyond))
    if tokenizer is not None and (tokenizer.chat is not None or info.get("template") == "chat"):
        parts.append(CHAT)
    figures = {name: value for name, value in info.items() if name not in (RUN_CONFIG, ENTRY)}
    figures |= code_and_versions(info.get(ENTRY))
    if figures:
        parts.append(_table("Training run", figures))
    if RUN_CONFIG in info:
        parts.append(AGAIN.format(config=str(info[RUN_CONFIG]).strip()))
    parts.append(_table("tinylm's config", config.to_dict()))
    return "".join(parts)


def _ends(tokenizer: Tokenizer) -> str:
    """The paragraph on the tokens around a text."""
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    stops = " or ".join(f"`{names.get(token, token)}`" for token in tokenizer.marks.stops)
    if tokenizer.end_of_text is None:
        return WITHOUT_END
    return IMPORTED.format(stops=stops) if tokenizer.imported else WITH_END.format(end=names[tokenizer.end_of_text])


def _table(title: str, values: dict[str, Any]) -> str:
    rows = [f"| {name} | {_cell(value)} |\n" for name, value in values.items()]
    return f"\n## {title}\n\n| | |\n|---|---|\n{''.join(rows)}"


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    return " ".join(text.split()).replace("|", r"\|")
