"""Models for lm_eval: by hand, and in lm_eval itself against the exported folder and `tinylm score`."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.serving.http_servers import running, serve
from tests.strategies import random_model
from tinylm.bundle import save_bundle
from tinylm.commands import run_command
from tinylm.data.grammar.stories import stories
from tinylm.errors import ConfigError, DataError
from tinylm.evaluation import score_text
from tinylm.evaluation.harness import HarnessModel, make_harness_model, sampling_options
from tinylm.interop import export_huggingface
from tinylm.model import ModelConfig
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer

STORIES = list(stories(seed=4, count=30))
TOKENIZER = BPETokenizer.train_from_texts(STORIES, vocab_size=300, special_tokens=[END_OF_TEXT])
CONFIG = ModelConfig(vocab_size=300, d_model=32, num_layers=2, num_heads=2, max_seq_len=48, qk_norm=False)


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, dtype=torch.float32)


def request(*arguments) -> SimpleNamespace:
    """A request as lm_eval gives it."""
    return SimpleNamespace(args=arguments)


# --- without lm_eval


@torch.no_grad()
def test_a_continuation_is_scored_by_hand(model):
    harness = HarnessModel(model, TOKENIZER)
    context, continuation = harness.tok_encode("Once upon"), TOKENIZER.encode(" a time")
    assert context == [TOKENIZER.end_of_text, *TOKENIZER.encode("Once upon")]
    ids = [*context, *continuation]
    log_probs = model(torch.tensor([ids])).double().log_softmax(-1)[0]
    expected = sum(float(log_probs[place - 1, ids[place]]) for place in range(len(context), len(ids)))
    likeliest = int(log_probs[len(context) - 1].argmax())
    found = harness._loglikelihood_tokens([(None, context, continuation), (None, context, [likeliest])])
    assert found[0] == (pytest.approx(expected, abs=1e-5), False)
    assert found[1] == (pytest.approx(float(log_probs[len(context) - 1].max()), abs=1e-5), True)


@pytest.mark.parametrize("length", [1, 47, 48, 49, 200])
@torch.no_grad()
def test_a_long_sequence_keeps_the_continuation_and_its_nearest_context(length, model):
    """Up to the context the whole continuation is predicted in one window."""
    generator = np.random.default_rng(0)
    context, continuation = generator.integers(0, 299, 60).tolist(), generator.integers(0, 299, length).tolist()
    ((found, _),) = HarnessModel(model, TOKENIZER)._loglikelihood_tokens([(None, context, continuation)])
    expected = 0.0
    for begin in range(0, length, 48):  # windows that predict each token once, the last one with a full context
        part = continuation[begin : begin + 48]
        ids = [*context, *continuation[: begin + len(part)]][-49:]
        expected += float(
            model(torch.tensor([ids[:-1]]))
            .double()
            .log_softmax(-1)[0]
            .gather(1, torch.tensor(ids[1:])[:, None])[-len(part) :]
            .sum()
        )
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("stride", "equivalent"), [(None, 48), (10, 10)])
def test_whole_texts_are_scored_as_tinylm_score_scores_them(stride, equivalent, model):
    texts = ["".join(STORIES[:3]), STORIES[3], "", "a"]
    found = HarnessModel(model, TOKENIZER, stride=stride).loglikelihood_rolling([request(text) for text in texts])
    expected = [-score_text(model, TOKENIZER, text, stride=equivalent).nats if text else 0.0 for text in texts]
    assert found == pytest.approx(expected, rel=1e-7)


def test_answers_end_at_stop_strings_and_long_contexts_keep_their_end(model):
    harness = HarnessModel(model, TOKENIZER)
    (whole,) = harness.generate_until([request(STORIES[0] * 3, {"max_gen_toks": 8})])
    ids = [TOKENIZER.end_of_text, *TOKENIZER.encode(STORIES[0] * 3)][-40:]
    for _ in range(8):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert whole == TOKENIZER.decode(ids[-8:])
    stop = whole[2:4]
    options = {"max_gen_toks": 8, "until": [stop]}
    first, second = harness.generate_until([request(STORIES[0] * 3, options), request("Once", {"max_gen_toks": 1})])
    assert first == whole[: whole.index(stop)]
    assert second


def test_options_of_tasks_become_ours():
    assert sampling_options({"until": "\n", "do_sample": False, "temperature": 0.7}) == {
        "stop": ["\n"], "max_new_tokens": 256, "temperature": 0.0,
    }  # fmt: skip
    found = sampling_options({"until": ["a", ""], "max_gen_toks": 5, "do_sample": True, "top_p": 0.9, "seed": None})
    assert found == {"stop": ["a"], "max_new_tokens": 5, "temperature": 1.0, "top_p": 0.9}
    with pytest.raises(ConfigError, match="generation_kwargs: num_beams is 4, which tinylm does not have"):
        sampling_options({"num_beams": 4})


def test_what_cannot_be_scored_is_refused(model):
    with pytest.raises(ConfigError, match="no token that begins or ends a text"):
        HarnessModel(model, CharTokenizer("ab"))
    with pytest.raises(DataError, match="an empty continuation"):
        HarnessModel(model, TOKENIZER)._loglikelihood_tokens([(None, [1], [])])


def test_without_lm_eval_the_remedy_is_named(model, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("tinylm.checks.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"lm_eval is not installed; install it: pip install lm_eval"):
        make_harness_model(model, TOKENIZER)
    save_bundle(tmp_path / "model", model, TOKENIZER)
    assert run_command("evaluate", ["--model", str(tmp_path / "model"), "--tasks", "piqa"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"tinylm: error: {INSTALL_LINE}"


def test_options_that_mean_nothing_are_refused(tmp_path, capsys):
    for options, message in (
        (["--overwrite"], "--overwrite: does not work without --out"),
        (["--include-path", "nowhere"], "--include-path nowhere: no such folder"),
        (["--limit", "0"], "limit must be at least 1"),
    ):
        assert run_command("evaluate", ["--model", "nowhere", "--tasks", "piqa", *options]) == 2
        assert message in capsys.readouterr().err


INSTALL_LINE = "lm_eval is not installed; install it: pip install lm_eval"


# --- in lm_eval

TASKS = {
    "choices": """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choices.json}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "texts": """
task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.json}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]
""",
    "answers": """
task: answers
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choices.json}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: [".", "\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture
def tasks(tmp_path, monkeypatch) -> Path:
    """A folder of tasks with their data."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install lm_eval")
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    questions = [
        {
            "question": story[:60].rsplit(" ", 1)[0],
            "choices": [" the cat", " a big red ball.", " was", " é"],
            "answer": n % 4,
        }
        for n, story in enumerate(STORIES[:12])
    ]
    questions.append({"question": "", "choices": ["Once", "Twice upon a time"], "answer": 0})
    (folder / "choices.json").write_text(json.dumps(questions))
    (folder / "texts.json").write_text(json.dumps([{"text": text} for text in ("".join(STORIES[:2]), STORIES[5])]))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tasks_give_what_the_exported_folder_gives(tasks, model, tmp_path, capfd):
    """lm_eval's own model puts the token that begins a text before it with add_bos_token."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    save_bundle(tmp_path / "model", model, TOKENIZER)
    export_huggingface(model, TOKENIZER, tmp_path / "hf")
    command = ["--model", tmp_path / "model", "--tasks", *TASKS, "--include-path", tasks, "--out", tmp_path / "r.json"]
    assert run_command("evaluate", [*map(str, command), "--device", "cpu"]) == 0
    table = capfd.readouterr().out
    assert "choices" in table and "bits_per_byte" in table
    ours = json.loads((tmp_path / "r.json").read_text())
    manager = TaskManager(include_path=str(tasks))
    for name in TASKS:  # of whole texts lm_eval puts the token first in any case, and would count a second one
        begin = name != "texts"
        arguments = f"pretrained={tmp_path / 'hf'},add_bos_token={begin},dtype=float32,max_length=48"
        theirs = simple_evaluate(
            "hf", model_args=arguments, tasks=[name], task_manager=manager, device="cpu", batch_size=1
        )
        for metric, value in theirs["results"][name].items():
            if isinstance(value, float):
                assert ours["results"][name][metric] == pytest.approx(value, rel=1e-5), (name, metric)
        for one, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            found, expected = flat(one["filtered_resps"]), flat(other["filtered_resps"])
            assert found == (pytest.approx(expected, abs=1e-4) if name != "answers" else expected)
        if name == "texts":
            their_bits = theirs["results"][name]["bits_per_byte,none"]
    texts = [entry["text"] for entry in json.loads((tasks / "texts.json").read_text())]
    score = score_text(model, TOKENIZER, texts, stride=48)
    assert score.bits_per_byte == pytest.approx(their_bits, rel=1e-5)
    assert math.isclose(score.bits_per_byte, ours["results"]["texts"]["bits_per_byte,none"], rel_tol=1e-7)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_server_of_the_model_gives_lm_eval_the_same(tasks, model, tmp_path, monkeypatch):
    """Texts fit the context with one more token, which lm_eval lets the server make.

    The server itself begins each text. Before whole texts and empty questions lm_eval puts that token, which it sends
    as an id or as plain text, so there are no empty questions here.
    """
    pytest.importorskip("tenacity", reason="lm_eval's API models are not installed: pip install lm_eval[api]")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    questions = json.loads((tasks / "choices.json").read_text())
    (tasks / "choices.json").write_text(
        json.dumps([each | {"question": each["question"][:20]} for each in questions[:-1]])
    )
    (tasks / "texts.json").write_text(json.dumps([{"text": text[:40]} for text in STORIES[:5]]))
    save_bundle(tmp_path / "model", model, TOKENIZER)
    export_huggingface(model, TOKENIZER, tmp_path / "hf")
    command = ["--model", tmp_path / "model", "--tasks", *TASKS, "--include-path", tasks, "--out", tmp_path / "r.json"]
    assert run_command("evaluate", [*map(str, command), "--device", "cpu"]) == 0
    ours = json.loads((tmp_path / "r.json").read_text())
    manager, served = TaskManager(include_path=str(tasks)), serve("served", TOKENIZER, model)
    with running([served]) as address:
        for name in TASKS:
            arguments = (
                f"model=served,base_url={address}/v1/completions,tokenizer={tmp_path / 'hf'},max_length=49,"
                f"tokenizer_backend=huggingface,num_concurrent=3,max_retries=1,tokenized_requests={name == 'texts'}"
            )
            theirs = simple_evaluate("local-completions", model_args=arguments, tasks=[name], task_manager=manager)
            for one, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
                found, expected = flat(one["filtered_resps"]), flat(other["filtered_resps"])
                assert found == (pytest.approx(expected, abs=1e-4) if name != "answers" else expected), name
    served.engine.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_task_that_does_not_exist_is_one_line(tasks, model, tmp_path, capfd):
    save_bundle(tmp_path / "model", model, TOKENIZER)
    command = ["--model", tmp_path / "model", "--tasks", "nonsense", "--include-path", tasks, "--device", "cpu"]
    assert run_command("evaluate", [*map(str, command)]) == 2
    assert "tinylm: error: --tasks nonsense: lm_eval cannot run them" in capfd.readouterr().err


def flat(value) -> list:
    """Numbers and texts of nested lists."""
    if isinstance(value, list | tuple):
        return [each for part in value for each in flat(part)]
    return [float(value) if isinstance(value, bool) or str(value) in ("True", "False") else value]
