"""The unmodified `openai` client against `Generator` and the model itself."""

import json

import httpx
import openai
import pytest
import torch

from tests.serving.http_servers import CHATTY, LETTERS, client, running, serve
from tinylm.data.pairs import Turn
from tinylm.data.template import encode_turns, find_template, use_template
from tinylm.generation import Generator
from tinylm.serving.openai_fields import UNSUPPORTED

PROMPT = "ab cd"
MODELS = ("letters", "chatty")


@pytest.fixture(scope="module")
def models():
    found = [serve("letters", LETTERS), serve("chatty", CHATTY)]
    yield {model.name: model for model in found}
    for model in found:
        model.engine.close()


@pytest.fixture(scope="module")
def address(models):
    with running(list(models.values())) as found:
        yield found


@pytest.fixture(scope="module")
def api(address):
    with client(address) as found:
        yield found


def generator(models, name: str) -> Generator:
    engine = models[name].engine.generator
    return Generator(engine.model, engine.tokenizer)


# --- completions


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("fields", "extra", "options"),
    [
        ({}, {}, {}),
        ({"temperature": 0}, {}, {"temperature": 0}),
        ({"temperature": 0.7, "top_p": 0.8}, {}, {"temperature": 0.7, "top_p": 0.8}),
        ({"top_p": 1}, {"top_k": -1, "min_p": 0}, {}),
        ({}, {"top_k": 3, "min_p": 0.1}, {"top_k": 3, "min_p": 0.1}),
        (
            {"presence_penalty": 1.5, "frequency_penalty": -0.5},
            {"repetition_penalty": 1.3},
            {"presence_penalty": 1.5, "frequency_penalty": -0.5, "repetition_penalty": 1.3},
        ),
        ({"logit_bias": {"3": 5, "4": -100}}, {}, {"logit_bias": {3: 5.0, 4: -100.0}}),
        ({"stop": ["d", "ab"]}, {"min_tokens": 3}, {"stop": ["d", "ab"], "min_new_tokens": 3}),
    ],
)
def test_a_completion_is_the_text_that_generate_makes_for_the_seed(api, models, name, fields, extra, options):
    found = api.completions.create(
        model=name, prompt=PROMPT, max_tokens=40, seed=5, user="me", extra_body=extra, **fields
    )
    assert found.choices[0].text == generator(models, name).generate(PROMPT, max_new_tokens=40, seed=5, **options)
    assert (found.object, found.model, found.system_fingerprint) == ("text_completion", name, None)


def test_sixteen_tokens_are_made_by_default_and_counted(api, models):
    found = api.completions.create(model="letters", prompt=PROMPT)
    assert (found.usage.completion_tokens, found.usage.prompt_tokens, found.usage.total_tokens) == (16, 5, 21)
    assert found.choices[0].finish_reason == "length" and len(found.choices[0].text) == 16


def test_choices_of_several_prompts_come_in_order_and_are_drawn_with_the_seeds_that_follow(api, models):
    prompts = [PROMPT, "j", "a" * 64]
    found = api.completions.create(model="letters", prompt=prompts, n=3, max_tokens=12, seed=2**64 - 2)
    expected = generator(models, "letters").complete(prompts, num_samples=3, max_new_tokens=12, seed=2**64 - 2)
    assert [choice.text for choice in found.choices] == [each.text for each in expected]
    assert [choice.index for choice in found.choices] == list(range(9))
    assert found.usage.prompt_tokens == 5 + 1 + 64


def test_a_prompt_may_be_token_ids(api):
    ids = [CHATTY.special_tokens["<|endoftext|>"], *CHATTY.encode(PROMPT)]
    both = [
        api.completions.create(model="chatty", prompt=prompt, seed=1).choices
        for prompt in (PROMPT, ids, [ids], [PROMPT])
    ]
    assert [choices[0].text for choices in both] == [both[0][0].text] * 4


def test_without_a_prompt_a_new_text_begins(api, models):
    found = httpx.post(f"{api.base_url}completions", json={"model": "chatty", "seed": 3, "max_tokens": 9}).json()
    assert found["choices"][0]["text"] == generator(models, "chatty").generate("", seed=3, max_new_tokens=9)


@pytest.mark.parametrize("name", MODELS)
def test_a_streamed_completion_is_that_text_with_its_reason_and_the_usage(api, models, name):
    events = list(
        api.completions.create(
            model=name, prompt=PROMPT, max_tokens=30, seed=4, stream=True, stream_options={"include_usage": True}
        )
    )
    choices = [event.choices[0] for event in events[:-1]]
    expected = generator(models, name).complete([PROMPT], max_new_tokens=30, seed=4)[0]
    assert "".join(choice.text for choice in choices) == expected.text
    assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1].finish_reason == ("length" if expected.finished == "length" else "stop")
    assert events[-1].choices == [] and events[-1].usage.completion_tokens == len(expected.ids)
    assert len({event.id for event in events}) == 1 and all(event.usage is None for event in events[:-1])


def test_no_beginning_of_a_stop_string_is_ever_sent(api, models):
    text = generator(models, "letters").generate(PROMPT, max_new_tokens=40, seed=6)
    stop = text[20:24]
    events = list(api.completions.create(model="letters", prompt=PROMPT, max_tokens=40, seed=6, stop=stop, stream=True))
    sent = "".join(event.choices[0].text for event in events)
    assert sent == text[: text.index(stop)] and events[-1].choices[0].finish_reason == "stop"


def test_streamed_choices_are_told_apart_by_their_indices(api, models):
    texts = {0: "", 1: "", 2: "", 3: ""}
    for event in api.completions.create(
        model="letters", prompt=[PROMPT, "j"], n=2, max_tokens=15, seed=1, stream=True, echo=True
    ):
        texts[event.choices[0].index] += event.choices[0].text
    expected = generator(models, "letters").complete([PROMPT, "j"], num_samples=2, max_new_tokens=15, seed=1)
    assert list(texts.values()) == [each.prompt + each.text for each in expected]


# --- log probabilities


def distributions(models, name: str, ids: list[int]) -> torch.Tensor:
    """Log probabilities of the token after each position, by the model itself."""
    with torch.no_grad():
        return models[name].engine.generator.model(torch.tensor([ids]))[0].log_softmax(-1)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_the_model_s_and_offsets_point_into_the_text(api, models, stream):
    options = dict(model="letters", prompt=PROMPT, max_tokens=20, seed=8, logprobs=3)
    if stream:
        parts = [event.choices[0] for event in api.completions.create(**options, stream=True)]
        text = "".join(part.text for part in parts)
        columns = [part.logprobs.to_dict() for part in parts]
        found = {name: [value for each in columns for value in each[name]] for name in columns[0]}
    else:
        choice = api.completions.create(**options).choices[0]
        text, found = choice.text, choice.logprobs.to_dict()
    ids = LETTERS.encode(PROMPT + text)
    expected = distributions(models, "letters", ids)[4:-1]
    assert "".join(found["tokens"]) == text
    assert found["token_logprobs"] == pytest.approx(expected.gather(1, torch.tensor(ids[5:])[:, None])[:, 0].tolist())
    assert found["text_offset"] == list(range(5, 25))
    for row, token, top in zip(expected, found["tokens"], found["top_logprobs"], strict=True):
        best = row.topk(3)
        names = [LETTERS.decode([i]) for i in best.indices.tolist()]
        assert top.keys() == {*names, token} and [top[name] for name in names] == pytest.approx(best.values.tolist())


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_an_echoed_prompt_is_scored(api, models, max_tokens):
    ids = [CHATTY.special_tokens["<|endoftext|>"], *CHATTY.encode("é a")]
    options = dict(model="chatty", max_tokens=max_tokens, logprobs=1, echo=True, seed=1)
    by_ids, by_text = (api.completions.create(prompt=p, **options).choices[0] for p in (ids, "é a"))
    expected = distributions(models, "chatty", ids)
    scores = [expected[i, token].item() for i, token in enumerate(ids[1:])]
    found = by_ids.logprobs.token_logprobs
    assert found[0] is None and found[1 : len(ids)] == pytest.approx(scores) and len(found) == len(ids) + max_tokens
    assert max(by_ids.logprobs.top_logprobs[2].values()) == pytest.approx(expected[1].max().item())
    assert by_text.text.startswith("é a") and by_text.logprobs.token_logprobs[0] is None
    assert by_text.logprobs.token_logprobs[1 : len(ids) - 1] == pytest.approx(scores[1:])
    assert by_text.logprobs.tokens[:3] == ["bytes:\\xc3", "bytes:\\xa9", " "]
    assert by_text.logprobs.text_offset[:4] == [0, 0, 1, 2]
    assert by_text.finish_reason == "length"


# --- chats


def test_a_chat_is_answered_as_generate_does(api, models):
    oracle = generator(models, "chatty")
    use_template(oracle, find_template("chat", CHATTY))
    messages = [{"role": "user", "content": "hello"}]
    found = api.chat.completions.create(
        model="chatty", messages=messages, max_completion_tokens=30, seed=9, temperature=0.9, n=2
    )
    expected = oracle.complete(["hello"], num_samples=2, max_new_tokens=30, seed=9, temperature=0.9)
    assert [choice.message.content for choice in found.choices] == [each.text for each in expected]
    assert found.object == "chat.completion" and found.choices[1].message.role == "assistant"
    assert found.usage.prompt_tokens == len(oracle.prompt_ids("hello"))


def test_a_conversation_is_read_as_in_training(api, models):
    roles = ("system", "user", "assistant", "user")
    turns = [Turn(role, f"{role} says") for role in roles]
    ids = [*encode_turns(CHATTY, turns, find_template("chat", CHATTY)).ids, CHATTY.special_tokens["<|assistant|>"]]
    messages = [{"role": "developer" if role == "system" else role, "content": text} for role, text in turns]
    messages[1]["content"] = [{"type": "text", "text": "user "}, {"type": "text", "text": "says"}]
    chat = api.chat.completions.create(model="chatty", messages=messages, max_tokens=20, seed=2)
    plain = api.completions.create(model="chatty", prompt=[int(i) for i in ids], max_tokens=20, seed=2)
    assert chat.choices[0].message.content == plain.choices[0].text


def test_a_streamed_chat_is_the_whole_one_with_the_bytes_of_its_tokens(api):
    options = dict(model="chatty", messages=[{"role": "user", "content": "é"}], max_tokens=25, seed=3)
    whole = api.chat.completions.create(**options, logprobs=True, top_logprobs=2).choices[0]
    events = list(api.chat.completions.create(**options, logprobs=True, top_logprobs=2, stream=True))
    deltas = [event.choices[0].delta for event in events]
    assert deltas[0].role == "assistant" and "".join(delta.content or "" for delta in deltas) == whole.message.content
    tokens = [
        token for event in events for token in (event.choices[0].logprobs.content if event.choices[0].logprobs else [])
    ]
    assert tokens == whole.logprobs.content
    spelt = b"".join(bytes(token.bytes) for token in tokens)
    assert spelt.decode(errors="replace") == whole.message.content and all(len(t.top_logprobs) == 2 for t in tokens)
    assert events[-1].choices[0].finish_reason == whole.finish_reason


# --- refusals


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 128, "prompt": ["a"] * 9}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"seed": 2**64}, "seed"),
        ({"min_tokens": 40}, "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tempreature": 1}, "tempreature"),
        ({"max_new_tokens": 1}, "max_new_tokens"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [11]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a" * 65}, "prompt"),
        ({"prompt": "z"}, None),
        ({"prompt": "\ud800"}, None),
        ({"logit_bias": {"11": 1}}, None),
        ({"temperature": 10**400}, None),
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
    ],
)
def test_an_invalid_field_is_refused_by_name(address, fields, param):
    body = json.dumps({"model": "letters", "prompt": "a"} | fields)
    headers = {"Content-Type": "application/json"}
    found = httpx.post(f"{address}/v1/completions", content=body, headers=headers)
    error = found.json()["error"]
    assert found.status_code == 400 and error["type"] == "invalid_request_error" and error["param"] == param, error
    assert "\n" not in error["message"] and len(error["message"]) < 300


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_a_field_that_is_not_supported_is_refused_unless_it_asks_for_nothing(address, name):
    fields = {"model": "letters", "prompt": "a", "max_tokens": 1}
    for value in (None, *UNSUPPORTED[name], [] if name == "tools" else None):
        assert httpx.post(f"{address}/v1/completions", json=fields | {name: value}).status_code == 200
    found = httpx.post(f"{address}/v1/completions", json=fields | {name: "something"})
    assert found.status_code == 400 and name in found.json()["error"]["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        ["hello"],
        [{"role": "user"}],
        [{"role": "tool", "content": "a"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": "a", "name": "me"}],
        [{"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}],
        [{"role": "user", "content": "a" * 99}],
    ],
)
def test_messages_that_cannot_be_read_are_refused(address, messages):
    found = httpx.post(f"{address}/v1/chat/completions", json={"model": "chatty", "messages": messages})
    assert found.status_code == 400 and found.json()["error"]["param"].startswith(("messages", "prompt"))


def test_the_client_raises_its_own_errors(api, models):
    with pytest.raises(openai.BadRequestError, match="temperature must be"):
        api.completions.create(model="letters", prompt="a", temperature=-1)
    with pytest.raises(openai.NotFoundError, match="'gpt-4' does not exist; this server has letters, chatty"):
        api.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.NotFoundError, match="no such path"):
        api.embeddings.create(model="letters", input="a")
    with pytest.raises(openai.BadRequestError, match="not trained on conversations") as caught:
        api.chat.completions.create(model="letters", messages=[{"role": "user", "content": "a"}])
    assert caught.value.param == "model"
    with pytest.raises(openai.BadRequestError) as caught:
        api.completions.create(model="letters", prompt="a" * 65)
    assert caught.value.code == "context_length_exceeded"


def test_a_key_is_asked_for_and_never_shown(models):
    with running(list(models.values()), key="secret-key") as address:
        with (
            client(address, "secret-kez") as stranger,
            pytest.raises(openai.AuthenticationError, match="the API key is wrong") as caught,
        ):
            stranger.models.list()
        assert caught.value.code == "invalid_api_key" and "secret" not in str(caught.value)
        assert httpx.get(f"{address}/v1/models").status_code == 401
        with client(address, "secret-key") as known:
            assert len(known.models.list().data) == 2
        assert httpx.get(f"{address}/healthz").status_code == 200


def test_models_are_listed_and_described(api):
    assert [model.id for model in api.models.list()] == ["letters", "chatty"]
    assert api.models.retrieve("chatty").object == "model"
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("other")
