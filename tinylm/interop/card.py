"""The model card: the README.md of an exported folder, with what is known of the model and how to use it."""

from typing import Any

from tinylm.interop.families import Family
from tinylm.model import ModelConfig, parameter_count
from tinylm.tokenizer import END_OF_TEXT, Tokenizer

HEADER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- tinylm
---

# {title}

A language model of {parameters:,} parameters, trained with tinylm, as transformers' {architecture}.
"""
LOAD = """
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}")
{inputs}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens={new})[0]))
```
"""
WITH_END = """
`{end}` stands before and after every text that the model has read: put it before a prompt, as above, by its name.
The name of a special token inside a text becomes that token, too, unless `split_special_tokens=True`.
"""
WITHOUT_END = """
The tokenizer has no token for the end of a text: a prompt must not be empty, and generation ends at its limit.
"""
CONTEXT = """
The context holds {context} tokens, prompt and continuation together. {beyond}
"""


def model_card(
    config: ModelConfig, family: Family, tokenizer: Tokenizer | None, folder: str, info: dict[str, Any]
) -> str:
    """The text of README.md, for a folder of this name."""
    title = str(info.get("run", folder))
    parts = [HEADER.format(title=title, parameters=parameter_count(config), architecture=family.architecture)]
    if tokenizer is not None:
        parts.append(_usage(tokenizer, config, folder))
    beyond = "There are no positions beyond." if config.positional_encoding == "learned" else "It never saw more."
    parts.append(CONTEXT.format(context=config.max_seq_len, beyond=beyond))
    if info:
        parts.append(_table("What is recorded of its run", info))
    parts.append(_table("Architecture, in tinylm's words", config.to_dict()))
    return "".join(parts)


def _usage(tokenizer: Tokenizer, config: ModelConfig, folder: str) -> str:
    begin = "" if tokenizer.end_of_text is None else "tokenizer.bos_token + "
    inputs = f'inputs = tokenizer({begin}"Once upon a time", return_tensors="pt")'
    usage = LOAD.format(folder=folder, inputs=inputs, new=min(100, max(config.max_seq_len // 2, 1)))
    return usage + (WITHOUT_END if tokenizer.end_of_text is None else WITH_END.format(end=END_OF_TEXT))


def _table(title: str, values: dict[str, Any]) -> str:
    rows = [f"| {name} | {_cell(value)} |\n" for name, value in values.items()]
    return f"\n## {title}\n\n| | |\n|---|---|\n{''.join(rows)}"


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    return " ".join(text.split()).replace("|", r"\|")
