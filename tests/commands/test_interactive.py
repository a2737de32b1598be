"""`tinylm generate --interactive` with piped lines: prompts, commands, settings and the memory of a conversation."""

import io
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml

import tinylm
from tests.data.test_chat_template import CHATML, SPECIAL
from tinylm.bundle import save_bundle
from tinylm.commands.interactive import Model, converse
from tinylm.commands.interactive.prompts import Fit, describe, fit_of, known_beginning
from tinylm.data import CHAT, Turn, read_pairs
from tinylm.data.grammar.stories import stories
from tinylm.data.template import find_template, prompt_ids, use_template
from tinylm.errors import ConfigError
from tinylm.generation import Generator, SamplingConfig
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import ByteTokenizer, CharTokenizer, Chat

SETTINGS = dict(max_new_tokens=9, temperature=0.8, seed=1)


@pytest.fixture(scope="module")
def generator(model) -> Generator:
    return Generator(*tinylm.load(model, device="cpu"))


@pytest.fixture
def talk(generator, monkeypatch, capfd):
    """talk(*lines) returns what the loop writes to stdout and stderr."""

    def talk(*lines: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        converse(Model(generator), SETTINGS)
        return capfd.readouterr()

    return talk


def heard(model: Model, monkeypatch, capfd, *lines: str, **settings) -> tuple[list[str], list[str]]:
    """The lines that a loop with any model writes to stdout and stderr."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    converse(model, SETTINGS | settings)
    out, err = capfd.readouterr()
    return out.split("\n")[:-1], err.split("\n")[:-1]


def test_piped_lines_give_completions_and_nothing_else(talk, generator):
    expected = [generator.generate(prompt, **SETTINGS) + "\n" for prompt in ("ab", " c")]
    assert talk("ab", " c") == ("".join(expected), "")
    assert talk("ab", " /quit ", " c") == (expected[0], "")
    assert talk() == ("", "")
    assert talk("", "  ", "ab") == (expected[0], "")  # nothing was asked


def test_a_pipe_does_without_prompt_toolkit(talk, generator, monkeypatch):
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)  # importing it would raise
    monkeypatch.delitem(sys.modules, "tinylm.commands.interactive.terminal", raising=False)
    assert talk("ab") == (generator.generate("ab", **SETTINGS) + "\n", "")


def test_options_of_the_script_are_the_initial_settings(model, load, generator, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\n"))
    words = ["--model", model, "--interactive", "--device", "cpu"]
    run = load("generate")
    assert run(*words, "--max-new-tokens", 9, "--seed", 1) == (0, generator.generate("ab", **SETTINGS) + "\n", "")
    code, out, err = run(*words, "--temperature", "-1")
    assert (code, out) == (2, "") and "temperature must be" in err
    code, out, err = run(*words, "--prompt", "a")
    assert (code, out) == (2, "") and "--prompt: does not work with --interactive; leave it out" in err


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("stop .", "stop", ["."]),
        ("stop the end", "stop", ["the end"]),
        ("stop off", "stop", []),
        ("temp 0.25", "temperature", 0.25),
        ("temperature=0.25", "temperature", 0.25),
        ("temperature = 0.25", "temperature", 0.25),
        ("temperature: 0.25", "temperature", 0.25),
        ("TOP_K 5", "top_k", 5),
        ("top_k None", "top_k", None),
        ("banned_tokens 2", "banned_tokens", [2]),
        ('stop ["b", "\\n"]', "stop", ["b", "\n"]),
        ("stop [b, 'c d']", "stop", ["b", "c d"]),
        ("top_k 3", "top_k", 3),
        ("top-k null", "top_k", None),
        ("temperature 1e-3", "temperature", 1e-3),
        ("logit_bias {3: 1.5}", "logit_bias", {3: 1.5}),
        ("banned_tokens [1, 2]", "banned_tokens", [1, 2]),
        ("truncate left", "truncate", "left"),
    ],
)
def test_a_setting_applies_to_later_prompts_and_is_shown_as_typed(typed, name, value, talk, generator):
    out, err = talk(f"/set {typed}", "abc")
    assert out == generator.generate("abc", **SETTINGS | {name: value}) + "\n"
    assert yaml.safe_load(err.removeprefix("tinylm: ")) == {name: value}

    shown, _ = talk(f"/set {typed}", "/settings")
    assert yaml.safe_load(shown)[name] == value
    assert set(yaml.safe_load(shown)) == {"truncate", *SamplingConfig.__dataclass_fields__}


@pytest.mark.parametrize(
    "line",
    [
        "/set", "/set top 3", "/set te 1", "/set stop [", "/set top_k many", "/set seed 2020-01-01", "/set nothing 1",
        "/set truncate right", "/set banned_tokens [99]", "/set logit_bias {1: x}", "/", "/xyz", "/quit now",
        "/agian", "/again", "/more", "/undo", "/probs", "/probs maybe", "/save", "/save x", "/model", "/model nowhere",
        "/undo 3", "/stats on",
        "/set seed 1" + "0" * 5000,
    ],
)  # fmt: skip
def test_an_invalid_line_prints_one_line_and_changes_no_setting(line, talk, generator):
    out, err = talk(line, "ab")
    assert out == generator.generate("ab", **SETTINGS) + "\n"
    assert err.startswith("tinylm: error: ") and err.count("\n") == 1


def test_invalid_settings_are_refused_before_the_first_prompt(generator):
    with pytest.raises(ConfigError, match="top_k must be at least 1, got 0"):
        converse(Model(generator), {"top_k": 0})


def test_help_lists_commands_and_every_setting(talk):
    out, err = talk("/help")
    assert err == ""
    for name, text in [("/quit", "leave"), ("top_k", "Keep the "), ("truncate", "left: drop")]:
        assert f"\n  {name:20}{text}" in out
    assert all(f"\n  {name} " in out for name in SamplingConfig.__dataclass_fields__)


def test_invalid_utf8_does_not_end_the_loop(generator, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\nab\n"), encoding="utf-8"))
    converse(Model(generator), SETTINGS)
    out, err = capfd.readouterr()
    assert out == generator.generate("ab", **SETTINGS) + "\n"
    assert "U+FFFD" in err


def test_ctrl_c_ends_a_loop_that_reads_a_pipe(generator, monkeypatch):
    def decode(texts, config, **options):
        texts[0].ids.append(1)
        yield texts[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(generator, "decode", decode)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n"))
    with pytest.raises(KeyboardInterrupt):
        converse(Model(generator), SETTINGS)


# --- again, more, undo


def test_answer_i_to_a_prompt_is_drawn_with_the_seed_plus_i_and_undo_restores_exactly(talk, generator):
    drawn = [generator.generate("ab", **SETTINGS | {"seed": 1 + i}) for i in range(3)]
    assert len({*drawn}) == 3
    out, err = talk("ab", "/again", "/again", "/undo", "/again", "/undo", "/undo", "/again")
    assert out == "".join(f"{drawn[i]}\n" for i in (0, 1, 2, 2, 1))
    assert err.splitlines() == ["tinylm: taken back; the last prompt is now: 'ab'"] * 3


def test_more_gives_what_a_longer_answer_would_have_had(talk, generator):
    whole = generator.generate("ab", **SETTINGS | {"max_new_tokens": 40})  # characters; beyond the context of 16
    parts = [whole[:9], whole[9:18], whole[18:27], whole[18:27]]
    assert talk("ab", "/more", "/more", "/undo", "/more")[0] == "".join(f"{part}\n" for part in parts)

    parts, begin, stop = [], 0, whole[4]
    for _ in range(3):  # up to the stop string or nine characters; the next part begins with the stop string
        found = whole.find(stop, begin, begin + 9)
        end = begin + 9 if found < 0 else found
        parts.append((stop if parts and whole[begin - 1] == stop else "") + whole[begin:end])
        begin = end + (found >= 0)
    assert talk(f"/set stop {stop}", "ab", "/more", "/more")[0] == "".join(f"{part}\n" for part in parts)


def test_without_a_seed_each_prompt_has_a_random_one_that_stats_names(generator, monkeypatch, capfd):
    out, _ = heard(Model(generator), monkeypatch, capfd, "ab", "/stats", "/again", "/stats", seed=None)
    seeds = [int(line.removeprefix("seed: ")) for line in out if line.startswith("seed: ")]
    assert seeds[1] == seeds[0] + 1
    for seed in seeds:
        assert generator.generate("ab", **SETTINGS | {"seed": seed}) in "\n".join(out)
    assert "last answer: 9 tokens after 2 of prompt; the context holds 16" in out


def test_reset_forgets_and_is_undone(talk, generator):
    drawn = [generator.generate("ab", **SETTINGS | {"seed": seed}) for seed in (1, 2)]
    out, err = talk("ab", "/reset", "/again", "/undo", "/again")
    assert out == f"{drawn[0]}\n{drawn[1]}\n"
    assert "/again draws another answer, and there is none yet" in err


# --- prompts unlike the training text


@pytest.fixture(scope="module")
def storyteller() -> Model:
    bundle = tinylm.bundle.load_bundle("storyteller")
    return Model(Generator(bundle.model, bundle.tokenizer), bundle.info)


def test_beginnings_of_the_corpus_fit_and_foreign_prompts_do_not(storyteller):
    def unlike(prompt: str) -> bool:
        return fit_of(storyteller.generator, storyteller.generator.prompt_ids(prompt), storyteller.info).unlike

    for number, story in enumerate(stories(seed=977, count=30)):  # no story of the training text
        words = story.split(" ")
        prompt = " ".join(words[: 1 + number * len(words) // 30])
        assert not unlike(prompt), prompt
    foreign = ("help", "exit", "Ella", "hello", "日本語", "def f(x):", "To be, or not to be", "once upon a time")
    assert all(map(unlike, foreign))


def test_a_foreign_prompt_is_named_in_one_line_with_one_that_works(storyteller, monkeypatch, capfd):
    out, err = heard(storyteller, monkeypatch, capfd, "Ella", "Once upon a time", "/again")
    (line,) = err
    assert line.startswith(
        "tinylm: this prompt is unlike the training text (19.1 nats per token, validation text 0.88)"
    )
    assert line.endswith("; a beginning that the model knows: Once upon a time") and len(out) == 3


def test_the_limit_of_a_prompt_follows_from_losses_and_length(generator):
    tokens = generator.tokenizer.vocab_size  # 13
    assert fit_of(generator, [1, 2], {}) is None and fit_of(generator, [1], {"val/loss": 1.0}) is None
    for count, limit in ((2, 1 + 9), (5, 1 + 9 / 2), (10, 1 + 9 / 3), (16, 1 + 9 / math.sqrt(15))):
        found = fit_of(generator, [1] * count, {"val/loss": 1.0})
        assert (found.tokens, found.limit) == (count - 1, pytest.approx(limit))
    long = fit_of(generator, [1] * 200, {"val/loss": 1.0})
    assert long.limit == pytest.approx((1 + math.log(tokens)) / 2)  # the middle, above 1 + 9 / sqrt(199)
    assert Fit(1, 10.1, 1.0, 10.0).unlike and not Fit(1, 10.0, 1.0, 10.0).unlike
    assert describe(Fit(1, 10.1, 1.0, 10.0), None).endswith("(10.1 nats per token, validation text 1.00)")


def test_a_beginning_without_a_sample_prompt_is_the_models_own(storyteller):
    found = known_beginning(storyteller.generator, {"val/loss": 0.88})
    assert found.startswith("Once upon a time there was")
    assert known_beginning(storyteller.generator, {"val/loss": 0.88, "prompt": "Ella"}) is None  # unlike, too


def test_bytes_that_are_no_text_are_named(monkeypatch, capfd):
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=256, d_model=16, num_layers=1, num_heads=2, max_seq_len=64)
    model = Model(Generator(TransformerLM(config).eval(), ByteTokenizer()))
    settings = SETTINGS | {"max_new_tokens": 30}
    answer = model.generator.generate("a", **settings)
    assert answer.count("�") > 1
    _, err = heard(model, monkeypatch, capfd, "a", **settings)
    assert err == [f"tinylm: � above stands for bytes that are not UTF-8 text, {answer.count('�')} times"]
    biased = dict.fromkeys("�".encode(), 100.0)  # the character itself is text
    only = {"logit_bias": biased, "max_new_tokens": 3, "temperature": 0}
    if model.generator.generate("a", **only) == "�":
        assert heard(model, monkeypatch, capfd, "a", **only)[1] == []


# --- probabilities, files, models


def test_probabilities_are_those_of_show_probs(model, load, generator, monkeypatch):
    words = ["--model", model, "--device", "cpu", "--max-new-tokens", 9, "--seed", 1]
    shown = load("generate")(*words, "--prompt", "ab", "--show-probs")[1].split("\n", 1)[1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("/probs on\nab\n/probs off\nab\n"))
    code, out, err = load("generate")(*words, "--interactive")
    legend, out = out.split("\n", 1)
    assert code == 0 and legend == "in brackets: the probability of each token"
    assert "ab" + out == shown + generator.generate("ab", **SETTINGS) + "\n"
    assert err == "tinylm: answers are shown as plain text\n"


def test_a_session_is_saved_to_a_new_file(talk, generator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answers = [generator.generate(prompt, **SETTINGS) for prompt in ("ab", "cd")]
    _, err = talk("ab", "a", "/undo", "cd", "/save it.jsonl", "/save it.txt", "/save it.txt")
    assert [[turn.content for turn in turns] for turns in read_pairs("it.jsonl")] == [
        ["ab", answers[0]], ["cd", answers[1]],
    ]  # fmt: skip
    assert Path("it.txt").read_text() == f"ab{answers[0]}\n---\ncd{answers[1]}\n"
    assert err.splitlines()[1:] == [
        "tinylm: saved: it.jsonl", "tinylm: saved: it.txt",
        "tinylm: error: it.txt: exists; /save takes the name of a new file",
    ]  # fmt: skip


def test_another_model_begins_anew_with_the_same_settings(model, load, generator, tmp_path, monkeypatch):
    torch.manual_seed(5)
    config = ModelConfig(vocab_size=3, d_model=16, num_layers=1, num_heads=2, max_seq_len=8)
    save_bundle(tmp_path / "other", TransformerLM(config), CharTokenizer("xyz"))
    lines = ["ab", f"/model {tmp_path / 'nowhere'}", "ab", f"/model {tmp_path / 'other'}", "/again", "xy"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    words = ["--model", model, "--interactive", "--device", "cpu", "--max-new-tokens", 9, "--seed", 1]
    code, out, err = load("generate")(*words)
    ours = generator.generate("ab", **SETTINGS)
    theirs = Generator(*tinylm.load(tmp_path / "other")).generate("xy", **SETTINGS)
    assert (code, out) == (0, f"{ours}\n{ours}\n{theirs}\n")
    assert "nowhere: no such model" in err and "there is none yet" in err


def test_after_a_chat_model_another_need_not_be_one(chat, model, load, generator, tmp_path, monkeypatch):
    save_bundle(tmp_path / "chat", chat.generator.model, chat.generator.tokenizer, {"template": "chat"})
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"ab\n/model {model}\nab\n"))
    words = ["--model", tmp_path / "chat", "--interactive", "--device", "cpu", "--max-new-tokens", 9, "--seed", 1]
    code, out, err = load("generate")(*words)
    first, second = chat.generator.generate("ab", **SETTINGS), generator.generate("ab", **SETTINGS)
    assert (code, out) == (0, f"{first}\n{second}\n") and "error" not in err


def test_the_loss_of_a_checkpoint_is_that_of_its_run(model, load, tmp_path, monkeypatch):
    from tinylm.bundle import Bundle
    from tinylm.commands.generate import describe as described

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    (tmp_path / "metrics.csv").write_text("step,val/loss\n10,2.5\n20,1.5\n30,1.75\n")
    bundle = Bundle(*tinylm.load(model), {"step": 20})
    found = described(
        bundle, Generator(bundle.model, bundle.tokenizer), None, tmp_path / "checkpoints" / "best.ckpt", False
    )
    assert found.info == {"step": 20, "val/loss": 1.5}


# --- conversations


@pytest.fixture
def chat() -> Model:
    """A random model with the tokens of a chat and a context of 40, and the prompts that it has read, in `read`."""
    torch.manual_seed(0)
    tokenizer = CharTokenizer("abcdefgh", CHAT.special_tokens)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, d_model=16, num_layers=1, num_heads=2, max_seq_len=40)
    generator = Generator(TransformerLM(config).eval(), tokenizer)
    use_template(generator, CHAT)
    return Model(generator, {"template": "chat", "val/loss": 0.1}, CHAT)


@pytest.fixture
def read(chat, monkeypatch) -> list[list[int]]:
    """The ids of the prompts that the model reads."""
    found, begin = [], chat.generator.begin

    def begun(prompt, **options):
        text, pieces = begin(prompt, **options)
        found.append(text.prompt)
        return text, pieces

    monkeypatch.setattr(chat.generator, "begin", begun)
    return found


SHORT = dict(max_new_tokens=4, banned_tokens=list(range(8, 12)))  # letters only


def test_a_conversation_is_remembered_in_its_template(chat, read, monkeypatch, capfd):
    answers, err = heard(chat, monkeypatch, capfd, "ab", "cd", "/again", "/undo", "e", "/reset", "f", **SHORT)
    assert len(answers) == 5 and {len(each) for each in answers} == {4}

    def ids(*contents: str) -> list[int]:
        turns = [Turn(role, text) for role, text in zip(("user", "assistant") * 4, contents, strict=False)]
        return prompt_ids(chat.generator.tokenizer, [*turns, Turn("assistant", "")], CHAT)

    first, second, other, third, _ = answers
    assert second != other
    assert read == [
        ids("ab"), ids("ab", first, "cd"), ids("ab", first, "cd"), ids("ab", first, "cd", second, "e"), ids("f"),
    ]  # fmt: skip
    assert third and not any("unlike" in line for line in err)  # the loss of questions means nothing


def test_a_public_models_own_template_holds_the_conversation(monkeypatch, capfd):
    torch.manual_seed(0)
    tokenizer = ByteTokenizer(SPECIAL).with_chat(Chat(CHATML, {}, {}))
    config = ModelConfig(vocab_size=tokenizer.vocab_size, d_model=16, num_layers=1, num_heads=2, max_seq_len=256)
    generator, template = Generator(TransformerLM(config).eval(), tokenizer), find_template("chat", tokenizer)
    use_template(generator, template)
    letters = [i for i in range(tokenizer.vocab_size) if not 97 <= i <= 122]
    model, settings = Model(generator, {"template": "chat"}, template), {"max_new_tokens": 4, "banned_tokens": letters}
    (first, second), _ = heard(model, monkeypatch, capfd, "ab", "cd", **settings)
    text = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    text += f"{first}<|im_end|>\n<|im_start|>user\ncd<|im_end|>\n<|im_start|>assistant\n"
    generator.encode_prompt = lambda _: tokenizer.encode(text, allow_special=True)
    assert generator.generate("", **SETTINGS | settings) == second


def test_a_conversation_is_trimmed_by_whole_turns_and_says_so(chat, read, monkeypatch, capfd):
    _, err = heard(chat, monkeypatch, capfd, "ab", "cd", "ef", "gh", **SHORT)
    # a turn of the user has 3 tokens, one of the assistant 6 with its end; opening and answer's role are 2 more
    assert [len(ids) for ids in read] == [5, 14, 23, 32]
    assert err == []
    _, err = heard(chat, monkeypatch, capfd, "ab", "cd", "ef", "gh", "a" * 10, "b", **SHORT)
    assert [len(ids) for ids in read[4:]] == [5, 14, 23, 32, 31, 30]  # at most 36, so that 4 are free
    assert err == [
        f"tinylm: the conversation exceeds the context of 40 tokens: its first {n} turns are not read" for n in (4, 6)
    ]


def test_a_saved_conversation_is_a_record_to_train_on(chat, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    (first, second), _ = heard(chat, monkeypatch, capfd, "ab", "cd", "/save it.jsonl", "/save it.txt", **SHORT)
    expected = [Turn("user", "ab"), Turn("assistant", first), Turn("user", "cd"), Turn("assistant", second)]
    assert [list(turns) for turns in read_pairs("it.jsonl")] == [expected]
    assert Path("it.txt").read_text() == "\n\n".join(f"{turn.role}: {turn.content}" for turn in expected) + "\n"


def test_a_long_prompt_names_the_setting_that_cuts_it(talk, chat, monkeypatch, capfd):
    remedy = "/set truncate left reads only its end"
    _, err = talk("a" * 20)
    assert err == f"tinylm: error: the prompt has 20 tokens, the context holds 16; {remedy}\n"
    _, err = heard(chat, monkeypatch, capfd, "a" * 40, **SHORT)
    assert err == [f"tinylm: error: the prompt has 43 tokens, the context holds 40; {remedy}"]
