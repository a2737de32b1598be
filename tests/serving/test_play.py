"""The JSON of `tinylm play` against the library's own functions, and the page's files."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient

from tests.runs.test_compare import make_run
from tests.serving.play_models import BYTES, LETTERS, STORY, make_bundle, playing
from tinylm.analysis.attention import attention_maps, entropy
from tinylm.data.grammar.stories import log_prob
from tinylm.data.template import find_template, use_template
from tinylm.evaluation import score_text
from tinylm.generation import Generator, SamplingConfig
from tinylm.serving.play import PAGE, play_app

BUNDLE, CHAT = make_bundle(), make_bundle(BYTES, seed=1, template="chat")


@pytest.fixture(scope="module")
def app():
    with playing(small=BUNDLE, chat=CHAT) as players:
        yield play_app(players)


@pytest.fixture
def client(app):
    return TestClient(app, base_url="http://127.0.0.1")


def post(client, path, **body):
    response = client.post(path, json={"model": "small"} | body)
    return response.status_code, response.json()


def generate(client, **body) -> list[dict]:
    response = client.post("/api/generate", json={"model": "small", "prompt": "Once"} | body)
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_models_are_described_with_every_option_of_sampling(client):
    found = client.get("/api/models").json()
    small, chat = found["models"]
    assert (small["parameters"], small["context"], small["heads"]) == (BUNDLE.model.num_parameters(), 32, 2)
    assert [(each["chat"], each["conversation"]) for each in (small, chat)] == [(False, False), (True, True)]
    defaults = {each.name: each.default for each in dataclasses.fields(SamplingConfig)}
    assert {each["name"]: each["default"] for each in found["options"]} == json.loads(json.dumps(defaults))
    assert all(each["help"] for each in found["options"])


def test_a_text_is_the_generators_with_probabilities_and_alternatives(client):
    options = dict(max_new_tokens=40, temperature=0.9, top_k=20, seed=3)  # beyond the context of 32
    text, pieces = Generator(BUNDLE.model, LETTERS).begin("Once", **options)
    expected = "".join(pieces)
    first, *lines, last = generate(client, options=options)
    tokens = [line["token"] for line in lines if "token" in line]
    assert [token["id"] for token in tokens] == text.ids
    assert "".join(token["text"] for token in tokens) == expected
    assert [token["nats"] for token in tokens] == pytest.approx([-each for each in text.log_probs], abs=1e-3)
    assert (first["seed"], last["finished"]) == (3, text.finished)
    assert "".join(token["text"] for token in first["prompt"]) == "<|endoftext|>Once"
    logits = BUNDLE.model(torch.tensor([Generator(BUNDLE.model, LETTERS).prompt_ids("Once")]))[0, -1]
    best = logits.log_softmax(-1).topk(10)
    assert [each["id"] for each in tokens[0]["alternatives"]] == best.indices.tolist()
    assert [-each["nats"] for each in tokens[0]["alternatives"]] == pytest.approx(best.values.tolist(), abs=1e-3)


def test_a_text_goes_on_from_given_tokens(client):
    """Greedy decoding depends on the ids alone, so the tokens could as well belong to the prompt."""
    options = dict(max_new_tokens=12, temperature=0)
    whole = [line["token"]["id"] for line in generate(client, options=options) if "token" in line]
    begun = [*whole[:3], next(token for token in range(5) if token != whole[3])]
    first, *lines = generate(client, options=options, begun=begun)
    assert [token["id"] for token in first["begun"]] == begun
    ids = Generator(BUNDLE.model, LETTERS).prompt_ids("Once")
    config = SamplingConfig(max_new_tokens=12 - len(begun), temperature=0)
    expected = list(Generator(BUNDLE.model, LETTERS).stream_ids([*ids, *begun], config))
    assert [line["token"]["id"] for line in lines if "token" in line] == expected


def test_without_a_seed_the_chosen_one_gives_the_text_again(client):
    first, *lines = generate(client, options={"max_new_tokens": 9})
    assert generate(client, options={"max_new_tokens": 9, "seed": first["seed"]})[1:] == lines


def test_characters_before_a_stop_string_are_counted(client):
    options = dict(max_new_tokens=30, temperature=0)
    whole = "".join(line["token"]["text"] for line in generate(client, options=options) if "token" in line)
    stop = whole[5:7]
    for begun in (0, 4):
        ids = LETTERS.encode(whole[:begun])
        last = generate(client, options=options | {"stop": [stop]}, begun=ids)[-1]
        assert last == {"finished": "stop", "kept": whole.index(stop)}


def test_a_prompt_can_be_a_users_message(client):
    generator = Generator(CHAT.model, BYTES)
    use_template(generator, find_template("chat", BYTES))
    first, *lines = generate(client, model="chat", prompt="Hi", chat=True, options={"seed": 1, "max_new_tokens": 20})
    assert [token["id"] for token in first["prompt"]] == generator.prompt_ids("Hi")
    text, pieces = generator.begin("Hi", seed=1, max_new_tokens=20)
    list(pieces)
    assert [line["token"]["id"] for line in lines if "token" in line] == text.ids


def test_tokens_that_are_parts_of_characters_complete_them_in_turn(client):
    code, found = post(client, "/api/read", model="chat", text="é\t\n")
    assert code == 200
    labels = [(token["label"], token["text"]) for token in found["tokens"]]
    assert labels == [("\\xc3", ""), ("\\xa9", "é"), ("\\t", "\t"), ("\\n", "\n")]


def test_the_loss_of_a_text_is_its_score_and_that_of_a_story_has_a_floor(client):
    for text in (STORY, "Once upon a time there was no floor"):
        code, found = post(client, "/api/read", text=text)
        score = score_text(BUNDLE.model, LETTERS, text)
        assert code == 200
        assert found["loss"] == pytest.approx(score.loss, abs=1e-4)
        assert found["perplexity"] == pytest.approx(score.perplexity, abs=1e-4)
        assert found["bits_per_byte"] == pytest.approx(score.bits_per_byte, abs=1e-4)
        assert math.fsum(token["nats"] for token in found["tokens"]) == pytest.approx(score.nats, abs=0.05)
        assert found["total"] == len(found["tokens"]) == len(text)
        floors = [token["floor"] for token in found["tokens"]]
        if text == STORY:
            assert math.fsum(floors) == pytest.approx(-log_prob(STORY), abs=0.05)
            assert found["floor"] == pytest.approx(-log_prob(STORY) / len(STORY), abs=1e-4)
        else:
            assert floors == [None] * len(text) and found["floor"] is None


def test_only_the_beginning_of_a_long_text_is_read(client, monkeypatch):
    monkeypatch.setattr("tinylm.serving.inside.MOST_READ", 50)
    code, found = post(client, "/api/read", text=STORY)
    assert (code, len(found["tokens"]), found["total"]) == (200, 50, len(STORY))
    assert found["loss"] == pytest.approx(score_text(BUNDLE.model, LETTERS, STORY[:50]).loss, abs=1e-4)


def test_attention_is_that_of_the_layer_and_head(client):
    ids = torch.tensor([[*LETTERS.opening, *LETTERS.encode(STORY)[:31]]])
    maps = attention_maps(BUNDLE.model, ids)[:, 0]
    for layer, head in ((0, 1), (1, 0)):
        code, found = post(client, "/api/attention", text=STORY, layer=layer, head=head)
        assert (code, found["total"]) == (200, len(STORY) + 1)
        assert [token["id"] for token in found["tokens"]] == ids[0].tolist()
        for t, row in enumerate(found["weights"]):
            assert row == pytest.approx(maps[layer, head, t, : t + 1].tolist(), abs=1e-4)
        assert found["entropy"] == pytest.approx(entropy(maps[layer, head]).mean().item(), abs=1e-4)


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("generate", {"model": "smal"}, "smal: no such model, did you mean 'small'?"),
        ("generate", {"prompt": 3}, "prompt must be a value of type str, got 3"),
        ("generate", {"options": {"temprature": 1}}, "temprature: no such option of generation, did you mean"),
        ("generate", {"options": {"top_p": 2}}, "top_p must be in (0, 1], got 2"),
        ("generate", {"options": {"logit_bias": {"a": 1}}}, "logit_bias must be numbers by token id"),
        ("generate", {"prompt": "a" * 40}, "the prompt has 41 tokens, the context holds 32"),
        ("generate", {"begun": ["a"]}, "begun must be a list of token ids"),
        ("generate", {"prompt": "Ж"}, "not in the vocabulary"),
        ("read", {"text": ""}, "the text has no token to predict; give a longer one"),
        ("attention", {"text": "Once", "layer": 2, "head": 0}, "layer must be from 0 to 1, got 2"),
        ("attention", {"text": "Once", "layer": 0, "head": 9}, "head must be from 0 to 1, got 9"),
    ],
)
def test_an_invalid_request_is_answered_by_one_line(path, body, problem, client):
    code, found = post(client, f"/api/{path}", **{"prompt": "Once"} | body)
    message = found["error"]["message"]
    assert code == 400 and problem in message and "\n" not in message


def test_given_tokens_that_end_the_text_are_an_error_in_the_stream(client):
    lines = generate(client, begun=[1, 2], options={"max_new_tokens": 2})
    assert lines[-1] == {"error": "the given tokens end the text; nothing follows"}


def test_pages_of_other_sites_cannot_use_the_models(client):
    body = {"model": "small", "text": "Once"}
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        response = client.post("/api/read", json=body, headers=headers)
        assert response.status_code in (403, 421) and "tokens" not in response.text
    assert client.post("/api/read", content=json.dumps(body), headers={"Content-Type": "text/plain"}).status_code == 415


# --- runs


def test_runs_are_listed_and_their_curves_grow(tmp_path):
    make_run(tmp_path / "runs/one"), make_run(tmp_path / "runs/two", finished=False)
    with playing(small=BUNDLE) as players:
        client = TestClient(play_app(players, [tmp_path / "runs"]), base_url="http://127.0.0.1")
        listed = {run["name"]: run for run in client.get("/api/runs").json()["runs"]}
        assert {name: run["finished"] for name, run in listed.items()} == {"one": True, "two": False}
        assert "val/loss" in listed["two"]["metrics"] and listed["two"]["planned"] == 30
        curve = client.get("/api/curve", params={"run": "two", "metric": "val/loss"}).json()
        path = tmp_path / "runs/two/metrics.csv"
        columns = path.read_text().splitlines()[0].split(",")
        row = ",".join({"step": "40", "val/loss": "1.5"}.get(name, "") for name in columns)
        with path.open("a") as file:
            file.write(row + "\n5")  # the second row is being written
        grown = client.get("/api/curve", params={"run": "two", "metric": "val/loss"}).json()
        later = next(run for run in client.get("/api/runs").json()["runs"] if run["name"] == "two")
        assert later["version"] != listed["two"]["version"]
        with path.open("a") as file:
            file.write(row.removeprefix("4") + "\n")
        longer = client.get("/api/curve", params={"run": "two", "metric": "val/loss"}).json()
        assert (grown["steps"], grown["values"]) == ([*curve["steps"], 40], [*curve["values"], 1.5])
        assert longer["steps"] == [*grown["steps"], 50]
        missing = client.get("/api/curve", params={"run": "../one", "metric": "val/loss"})
        assert (missing.status_code, missing.json()["error"]["message"]) == (400, "../one: no such run")


def test_a_damaged_run_is_named_and_the_others_are_shown(tmp_path):
    make_run(tmp_path / "one"), make_run(tmp_path / "two")
    (tmp_path / "one/metrics.csv").write_text("step,val/loss\nabc,1\n")
    with playing(small=BUNDLE) as players:
        client = TestClient(play_app(players, [tmp_path]), base_url="http://127.0.0.1")
        found = {run["name"]: run["problem"] for run in client.get("/api/runs").json()["runs"]}
    assert found["two"] is None and "one: is damaged" in found["one"]


# --- the page's files


def test_the_page_may_request_nothing_from_elsewhere(client):
    response = client.get("/")
    assert response.status_code == 200 and "<!DOCTYPE html>" in response.text
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "http" not in policy and "unsafe" not in policy
    for path in Path(PAGE).iterdir():
        outside = re.findall(r"(?:https?:)?//[\w.]+\.\w+", path.read_text(encoding="utf-8"))
        assert set(outside) <= {"http://www.w3.org"}, path  # the name of SVG, which nothing requests
        assert client.get(f"/{path.name}").status_code == 200
    for script in Path(PAGE).glob("*.js"):
        assert "innerHTML" not in script.read_text(encoding="utf-8"), script  # texts of models are never markup
