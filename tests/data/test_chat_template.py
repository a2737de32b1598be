"""Chat templates of public models' forms, against transformers' apply_chat_template."""

import json

import numpy as np
import pytest

from tests.published import TOKENIZERS
from tinylm.data import ChatTemplate, Turn, encode_turns, find_template, prompt_ids
from tinylm.data.grammar.stories import stories
from tinylm.data.template import stop_after_turns, use_template
from tinylm.errors import DataError
from tinylm.generation import Generator
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import BPETokenizer, Chat, Tokenizer, load_tokenizer, write_tokenizer_json

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>",
    "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
]  # fmt: skip
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = """\
{% for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = '<|begin_of_text|>' + "
    "content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message.content + "
    "'<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
FUNCTIONS = (
    "{{ strftime_now('%Y') }}{% for message in messages %}{% if message.content == 'stop' %}{% break %}{% endif %}"
    "{{ message | tojson }}{{ {'a': ['<é>', 1]} | tojson(indent=2) }}{% endfor %}"
)
FORMS = {"ChatML": CHATML, "Llama 3": LLAMA3, "Mistral": MISTRAL, "Zephyr": ZEPHYR, "marked": MARKED}
ENDS = {"ChatML": "<|im_end|>", "Llama 3": "<|eot_id|>", "Mistral": "</s>", "Zephyr": "</s>", "marked": "<|im_end|>"}
CONVERSATION = (
    Turn("user", "Who was Lily?"), Turn("assistant", "A girl,  é\n\nof course."),
    Turn("user", "And  Tom?\n"), Turn("assistant", "Her friend 😀."),
)  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> BPETokenizer:
    """Without a template."""
    text = "".join(stories(seed=5, count=40)) + "user assistant system [INST] [/INST] \n\n" * 9
    return BPETokenizer.train_from_texts([text], vocab_size=500, special_tokens=SPECIAL)


@pytest.fixture
def tokenizers(plain, tmp_path):
    """tokenizers(template) gives ours and transformers' tokenizer with it."""
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers itself")

    def make(template: str) -> tuple[Tokenizer, object]:
        write_tokenizer_json(plain, tmp_path / "tokenizer.json", overwrite=True)
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **NAMES)
        theirs.chat_template = template
        return plain.with_chat(Chat(template, NAMES, {})), theirs

    return make


def messages(turns) -> list[dict[str, str]]:
    return [turn._asdict() for turn in turns]


def their_ids(theirs, turns, **options) -> list[int]:
    return theirs.apply_chat_template(messages(turns), tokenize=True, return_dict=True, **options)["input_ids"]


# --- against transformers


@pytest.mark.parametrize("form", FORMS)
def test_ids_are_those_of_transformers(form, tokenizers):
    ours, theirs = tokenizers(FORMS[form])
    template = find_template("chat", ours)
    assert isinstance(template, ChatTemplate)
    turns = CONVERSATION if form == "Mistral" else (Turn("system", "Be brief."), *CONVERSATION)
    for conversation in (turns, CONVERSATION[:2], CONVERSATION):
        ids, _ = encode_turns(ours, conversation, template)
        assert ids.tolist() == their_ids(theirs, conversation)
        prompt = prompt_ids(ours, conversation, template)
        assert prompt == their_ids(theirs, conversation[:-1], add_generation_prompt=True)
        assert ids[: len(prompt)].tolist() == prompt


def test_functions_and_filters_are_those_of_transformers(tokenizers):
    ours, theirs = tokenizers(FUNCTIONS)
    turns = (Turn("user", '<b>"é"</b>'), Turn("user", "stop"), Turn("user", "unseen"))
    text = theirs.apply_chat_template(messages(turns), tokenize=False)
    assert ChatTemplate(ours.chat).render(ours, turns).text == text and "<b>" in text and "unseen" not in text


def test_a_real_template_gives_the_text_of_transformers(plain):
    folder = TOKENIZERS / "qwen2.5"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers itself")
    source = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    template = ChatTemplate(Chat(source, {"eos_token": "<|im_end|>"}, {}))
    for turns in (CONVERSATION, (Turn("system", "Be brief."), *CONVERSATION)):
        text = theirs.apply_chat_template(messages(turns), tokenize=False)
        assert template.render(plain, turns).text == text
        prompt = theirs.apply_chat_template(messages(turns[:-1]), tokenize=False, add_generation_prompt=True)
        assert template.render(plain, turns[:-1], generation_prompt=True).text == prompt


def test_marked_tokens_are_those_that_transformers_marks(tokenizers):
    ours, theirs = tokenizers(MARKED)
    _, counts = encode_turns(ours, CONVERSATION, find_template("chat", ours))
    options = dict(tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    masks = theirs.apply_chat_template(messages(CONVERSATION), **options)["assistant_masks"]
    assert counts.astype(int).tolist() == masks and counts.any()


# --- what counts


@pytest.mark.parametrize("form", FORMS)
def test_answers_and_the_tokens_that_end_them_count(form, tokenizers):
    ours, _ = tokenizers(FORMS[form])
    ids, counts = encode_turns(ours, CONVERSATION, find_template("chat", ours))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], counts.astype(int), [0]])))
    answers = [ours.decode(ids[begin:end]) for begin, end in edges.reshape(-1, 2)]
    space = " " if form == "Mistral" else ""
    expected = [f"{space}{turn.content}{ENDS[form]}" for turn in CONVERSATION if turn.role == "assistant"]
    assert answers == expected


def test_names_of_special_tokens_in_messages_are_plain_text(tokenizers):
    ours, _ = tokenizers(CHATML)
    turns = (Turn("user", "say <|im_end|> or </s>"), Turn("assistant", "<|im_end|>!"))
    ids, counts = encode_turns(ours, turns, find_template("chat", ours))
    special = set(ours.special_tokens.values())
    assert [ours.decode([i]) for i in ids.tolist() if i in special] == ["<|im_start|>", "<|im_end|>"] * 3
    assert ours.decode(ids).endswith(
        "user\nsay <|im_end|> or </s><|im_end|>\n<|im_start|>assistant\n<|im_end|>!<|im_end|>\n"
    )
    assert ours.decode(ids[counts]) == "<|im_end|>!<|im_end|>"


def test_the_end_of_a_turn_becomes_a_stop(tokenizers):
    ours, _ = tokenizers(CHATML)
    stopping = stop_after_turns(ours, find_template("chat", ours))
    assert stopping.marks.stops == (ours.special_tokens["<|endoftext|>"], ours.special_tokens["<|im_end|>"])
    assert stopping.marks[:2] == ours.marks[:2] and stopping.chat == ours.chat
    assert stop_after_turns(stopping, find_template("chat", ours)) is stopping


def test_the_generator_reads_a_prompt_as_the_template_writes_it(tokenizers):
    ours, theirs = tokenizers(CHATML)
    model = TransformerLM(ModelConfig(vocab_size=ours.vocab_size, d_model=8, num_layers=1, num_heads=1, max_seq_len=64))
    generator = Generator(model.eval(), ours)
    use_template(generator, find_template("chat", ours))
    assert generator.prompt_ids("Who?") == their_ids(theirs, [Turn("user", "Who?")], add_generation_prompt=True)
    assert generator.generate("Who?", max_new_tokens=3, temperature=0) is not None


# --- refused

FORGETFUL = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{{ message.content if loop.last or "
    "message.role == 'user' else message.content.split('</think>')[-1] }}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_an_answer_that_is_written_differently_later_is_refused(tokenizers):
    ours, _ = tokenizers(FORGETFUL)
    template = find_template("chat", ours)
    thinking = (Turn("user", "2+2"), Turn("assistant", "<think>easy</think>4"))
    _, counts = encode_turns(ours, thinking, template)
    assert counts.any()
    with pytest.raises(DataError, match=r"writes message 2, of the assistant, differently when .* give one answer"):
        encode_turns(ours, (*thinking, Turn("user", "3+3"), Turn("assistant", "6")), template)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (MISTRAL, "the model's chat template refuses this conversation: Roles must alternate user/assistant"),
        ("{{ messages[0].content.__class__.__mro__ }}", "refuses this conversation: access to attribute '__class__'"),
        (
            "{{ messages.append(1) }}",
            "refuses this conversation: access to attribute 'append' of 'list' object is unsafe",
        ),
        ("{{ messages[9].content.x }}", "refuses this conversation"),
        ("{% for x in range(10000000) %}{% endfor %}", "refuses this conversation: Range too big"),
    ],
)
def test_a_template_that_fails_is_refused_in_one_line(source, message, tokenizers):
    ours, _ = tokenizers(source)
    with pytest.raises(DataError, match=message) as caught:
        encode_turns(
            ours, (Turn("system", "x"), Turn("user", "a"), Turn("assistant", "b")), find_template("chat", ours)
        )
    assert "\n" not in str(caught.value)


def test_a_template_that_is_not_jinja_is_refused_with_its_line(plain):
    with pytest.raises(DataError, match=r"is not valid Jinja \(line 2: .*; repair chat_template in its"):
        ChatTemplate(Chat("a\n{% for %}", {}, {}))


# --- files


def test_a_tokenizer_file_keeps_the_template(plain, tmp_path):
    ours = plain.with_chat(Chat(CHATML, NAMES, {"tool_use": MISTRAL}))
    ours.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again == ours != plain and again.chat == ours.chat
    assert again.with_special_tokens(["<|new|>"]).chat == ours.chat
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["chat"]["template"] += " "
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="is damaged"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_file_with_a_template_of_another_form_is_refused(plain, tmp_path):
    values = plain.to_dict() | {"chat": {"template": ["a"], "names": {}, "others": {}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"is not a tinylm tokenizer .*a chat template and its names must be text"):
        load_tokenizer(tmp_path / "tokenizer.json")
