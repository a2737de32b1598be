"""Every pair of options of generate, score, tokenizer and export: it works as both say, or is refused by name.

What an option says is checked where it takes effect: in the texts, their settings, the output and the files.
"""

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch

import tinylm.bundle
from tinylm.bundle import Bundle, load_bundle, save_bundle
from tinylm.commands import generate as command
from tinylm.commands import score as score_command
from tinylm.commands import tokenizer as tokenizer_command
from tinylm.generation import Completion, Generator, SpeculativeGenerator, beam
from tinylm.generation.fast import compiled
from tinylm.generation.fast.cached import CachedDecoder
from tinylm.generation.fast.decoder import Decoder
from tinylm.model import Int8KVCache, ModelConfig, TransformerLM
from tinylm.reference import files as twin
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer, load_tokenizer, tokenizer_class

TOKENIZER = CharTokenizer("abcdefgh\n %[]0123456789", [END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>"])
USER = TOKENIZER.special_tokens["<|user|>"]


@dataclass
class Trace:
    """Record of what `generate` did."""

    code: int = 0
    out: str = ""
    err: str = ""
    prompts: list[tuple[str, Any]] = field(default_factory=list)  # and `truncate`
    ids: list[list[int]] = field(default_factory=list)  # that the model reads for each
    settings: list[Any] = field(default_factory=list)  # SamplingConfig or BeamConfig
    texts: list[Any] = field(default_factory=list)  # Text or Completion, with `ids`
    sizes: list[int] = field(default_factory=list)  # of batches
    used: set[Any] = field(default_factory=set)  # classes, numbers of threads, devices

    def all(self, name: str, value: Any) -> bool:
        return bool(self.settings) and all(getattr(each, name) == value for each in self.settings)


def has(name: str, value: Any) -> Callable[[Trace], bool]:
    return lambda trace: trace.all(name, value)


def rows() -> list[dict]:
    return [json.loads(line) for line in Path("o.jsonl").read_text(encoding="utf-8").splitlines()]


def counts_samples(trace: Trace) -> bool:
    texts = trace.texts[-2 * len(trace.prompts) :]
    return len(texts) == 2 * len(trace.prompts) and trace.out.count("\n---\n") == len(texts) - 1


# The words of each option, with another one that it needs, and its effect.
OPTIONS: dict[str, tuple[list[str], Callable[[Trace], bool]]] = {
    "--prompt": (["--prompt", "ba"], lambda trace: [each for each, _ in trace.prompts] == ["ba"]),
    "--prompts-file": (["--prompts-file", "p.txt"], lambda t: [each for each, _ in t.prompts] == ["ab", "cd"]),
    "--interactive": (["--interactive"], lambda trace: [each for each, _ in trace.prompts] == ["ba", "dc"]),
    "--chat": (["--chat"], lambda trace: all(USER in ids for ids in trace.ids)),
    "--max-new-tokens": (["--max-new-tokens", "6"], lambda trace: all(len(each.ids) <= 6 for each in trace.texts)),
    "--min-new-tokens": (["--min-new-tokens", "4"], lambda trace: all(len(each.ids) >= 4 for each in trace.texts)),
    "--temperature": (["--temperature", "0.5"], has("temperature", 0.5)),
    "--top-k": (["--top-k", "7"], has("top_k", 7)),
    "--top-p": (["--top-p", "0.9"], has("top_p", 0.9)),
    "--min-p": (["--min-p", "0.01"], has("min_p", 0.01)),
    "--typical-p": (["--typical-p", "0.9"], has("typical_p", 0.9)),
    "--repetition-penalty": (["--repetition-penalty", "1.5"], has("repetition_penalty", 1.5)),
    "--presence-penalty": (["--presence-penalty", "0.5"], has("presence_penalty", 0.5)),
    "--frequency-penalty": (["--frequency-penalty", "0.5"], has("frequency_penalty", 0.5)),
    "--banned-tokens": (
        ["--banned-tokens", "0", "5", "7"],
        lambda trace: not any({0, 5, 7} & {*each.ids} for each in trace.texts),
    ),
    "--stop": (["--stop", "a", "b", "c", "d", "e"], lambda trace: trace.all("stop", tuple("abcde")) and cut(trace)),
    "--seed": (["--seed", "3"], lambda t: t.all("seed", 3) and {text.seed for text in t.texts} <= {3, 4}),
    "--num-beams": (["--num-beams", "3"], has("num_beams", 3)),
    "--length-penalty": (["--num-beams", "3", "--length-penalty", "0.5"], has("length_penalty", 0.5)),
    "--truncate": (["--truncate", "left"], lambda trace: {truncate for _, truncate in trace.prompts} == {"left"}),
    "--num-samples": (["--num-samples", "2"], counts_samples),
    "--stream": (["--stream"], lambda trace: "streamed" in trace.used),
    "--no-stream": (["--no-stream"], lambda trace: "streamed" not in trace.used),
    "--out": (
        ["--out", "o.jsonl", "--overwrite"],
        lambda trace: sorted(row["ids"] for row in rows()) == sorted(each.ids for each in trace.texts),
    ),
    "--show-probs": (["--show-probs"], lambda trace: has_probabilities(trace)),
    "--stats": (["--stats"], lambda trace: "tokens/s" in trace.err and "text: " in trace.err),
    "--batch-size": (["--batch-size", "2"], lambda trace: max(trace.sizes) <= 2),
    "--threads": (["--threads", "1"], lambda trace: 1 in trace.used),
    "--compile": (["--compile"], lambda trace: "compiled" in trace.used),
    "--kv-cache": (["--kv-cache", "int8"], lambda trace: Int8KVCache in trace.used),
    "--draft": (["--draft", "draft"], lambda trace: "draft" in trace.used),
    "--lookup": (["--lookup"], lambda trace: "lookup" in trace.used),
    "--device": (["--device", "cpu"], lambda trace: "cpu" in trace.used),
}
REFUSED = 46  # pairs


def spelled(trace: Trace, ids: list[int]) -> tuple[str, bool]:
    """The text of ids up to the first letter of `--stop`, those before `--min-new-tokens` aside; whether it ends there.

    The ids after that letter's token must not exist.
    """
    config, pieces = trace.settings[0], [TOKENIZER.decode([i]) for i in ids]
    stops = [n for n, piece in enumerate(pieces, 1) if n >= config.min_new_tokens and {*piece} & {*config.stop}]
    if not stops:
        return "".join(pieces), False
    assert stops == [len(pieces)]
    return "".join(pieces[:-1]) + re.split("[abcde]", pieces[-1])[0], True


def cut(trace: Trace) -> bool:
    """Whether each text ends where it should, and is printed up to there."""
    for each in trace.texts:
        kept, stopped = spelled(trace, each.ids)
        if (each.finished == "stop") != stopped or (isinstance(each, Completion) and each.text != kept):
            return False
        if "%]" not in trace.out and kept not in trace.out:  # test_generate.py compares the tokens with probabilities
            return False
    return True


def has_probabilities(trace: Trace) -> bool:
    return "%]" in trace.out or not any(spelled(trace, each.ids)[0] for each in trace.texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with all special tokens, its draft model, its NumPy twin and prompts."""
    torch.manual_seed(0)
    found = tmp_path_factory.mktemp("pairs")
    shape = dict(vocab_size=TOKENIZER.vocab_size, d_model=16, num_layers=1, num_heads=2, max_seq_len=64)
    for name in ("model", "draft"):
        save_bundle(found / name, TransformerLM(ModelConfig(**shape)), TOKENIZER, {"prompt": "ab"})
    twin.save(twin.load(found / "model"), found / "model" / "it.npz")
    (found / "p.txt").write_text("ab\ncd\n")
    return found


@pytest.fixture
def trace(folder, monkeypatch) -> Trace:
    """Records what `generate` does."""
    found = Trace()
    monkeypatch.chdir(folder)
    bundle, draft = load_bundle("model"), load_bundle("draft")

    def loaded(path, device, trust=()):
        if Path(path).name == "draft":
            return draft
        found.used.add(device)
        bundle.model.cache_type = TransformerLM.cache_type
        return Bundle(bundle.model, bundle.tokenizer, bundle.info)

    class Compiled(Decoder):
        def __init__(self, model):
            super().__init__(model)
            found.used.add("compiled")

    def spy(owner, name, note):
        original = getattr(owner, name)

        def call(*arguments, **options):
            result = original(*arguments, **options)
            return note(result, *arguments, **options) or result

        monkeypatch.setattr(owner, name, call)

    def prompt(result, generator, text, truncate=None):
        found.prompts.append((text, truncate))
        found.ids.append(result)
        if isinstance(generator, SpeculativeGenerator):
            found.used.add("lookup" if generator.draft is None else "draft")

    def decoded(result, generator, texts, config, batch_size=1, **_):
        found.settings.append(config)
        found.texts += texts
        found.sizes.append(batch_size)

    def searched(result, generator, ids, config):
        found.settings.append(config)

    monkeypatch.setattr(tinylm.bundle, "load_bundle", loaded)
    monkeypatch.setattr(compiled, "CompiledDecoder", Compiled)
    spy(Generator, "prompt_ids", prompt)
    spy(Generator, "decode", decoded)
    spy(SpeculativeGenerator, "decode", decoded)
    spy(beam, "_search", searched)
    spy(beam, "_completion", lambda result, *_: found.texts.append(result))
    spy(command, "stream", lambda *_, **__: found.used.add("streamed"))
    spy(torch, "set_num_threads", lambda _, count: found.used.add(count))
    spy(CachedDecoder, "make_cache", lambda result, *_: found.used.add(type(result)))
    streamed = Generator._pieces
    monkeypatch.setattr(Generator, "_pieces", lambda *words: found.used.add("streamed") or streamed(*words))
    return found


def run(load, trace: Trace, words: list[str], monkeypatch) -> Trace:
    monkeypatch.setattr(sys, "stdin", io.StringIO("ba\ndc\n"))
    for each in (trace.prompts, trace.ids, trace.settings, trace.texts, trace.sizes, trace.used):
        each.clear()
    trace.code, trace.out, trace.err = load("generate")(*words)
    return trace


def refused(found: Trace, *names: str) -> bool:
    """Whether a pair was refused by the name of one of its options, before the model was loaded."""
    if found.code == 0:
        return False
    line = found.err
    assert (found.code, found.out, line.count("\n"), found.used) == (2, "", 1, set()), line
    assert line.startswith("tinylm: error: --") and any(f"{name}: does not work with" in line for name in names), line
    return True


def words_of(*names: str) -> list[str]:
    """The words of several options; the number of tokens is small unless it is one of them."""
    words = [word for name in names for word in OPTIONS[name][0]]
    return words if "--max-new-tokens" in names else [*words, "--max-new-tokens", "8"]


def test_the_walk_covers_all_options():
    options = {name for action in command.make_parser()._actions for name in action.option_strings}
    assert options - OPTIONS.keys() == {"-h", "--help", "--debug", "--model", "--overwrite", "--trust-code"}
    print(f"{len([*combinations(OPTIONS, 2)])} pairs of generate's options")


@pytest.mark.slow
def test_each_pair_of_generates_options_works_or_is_refused_by_name(load, trace, monkeypatch):
    counts = {True: 0, False: 0}
    for pair in combinations(OPTIONS, 2):
        found = run(load, trace, ["--model", "model", *words_of(*pair)], monkeypatch)
        names = [word for word in words_of(*pair) if word.startswith("--")]
        counts[refused(found, *names)] += 1
        for name in pair:
            assert found.code == 2 or OPTIONS[name][1](found), (pair, name, found)
    print(f"{sum(counts.values())} pairs: {counts[False]} work, {counts[True]} are refused by name")
    assert counts[True] == REFUSED


def test_options_that_need_another_one_are_refused_alone(load, trace, monkeypatch):
    for name, needed in (("--overwrite", "--out"), ("--length-penalty=2", "--num-beams")):
        found = run(load, trace, ["--model", "model", name], monkeypatch)
        assert found.err == f"tinylm: error: {name.partition('=')[0]}: does not work without {needed}; leave it out\n"


def test_each_option_works_with_a_npz_archive_or_is_refused_by_name(load, trace, monkeypatch):
    usual = run(load, trace, ["--model", "model/it.npz", "--max-new-tokens", "8", "--seed", "1"], monkeypatch).out
    for name, (words, _) in OPTIONS.items():
        found = run(load, trace, ["--model", "model/it.npz", *words_of(name)], monkeypatch)
        if name in ("--prompt", "--max-new-tokens", "--num-samples", "--seed", "--temperature", "--top-k", "--top-p"):
            assert found.code == 0 and found.out != usual, name
        else:
            assert refused(found, *words) != (name == "--no-stream"), name


# --- score

SCORE: dict[str, tuple[list[str], tuple[str, Any] | None]] = {  # the argument that arrives, and its value
    "--text": (["--text", "t.txt"], ("text", "abc abc")),
    "--stride": (["--text", "t.txt", "--stride", "3"], ("stride", 3)),
    "--pairs": (["--pairs", "p.jsonl"], ("expected", ["ab"])),
    "--template": (["--pairs", "p.jsonl", "--template", "chat"], ("template", "chat")),
    "--max-new-tokens": (["--pairs", "p.jsonl", "--max-new-tokens", "2"], ("max_new_tokens", 2)),
    "--show": (["--pairs", "p.jsonl", "--show", "0"], ("shown", 0)),
    "--batch-size": (["--batch-size", "3"], ("batch_size", 3)),
    "--device": (["--device", "cpu"], ("device", "cpu")),
}


def test_each_pair_of_scores_options_works_or_is_refused_by_name(load, folder, monkeypatch):
    import tinylm.data
    import tinylm.evaluation

    heard: dict[str, Any] = {}
    monkeypatch.chdir(folder)
    Path("t.txt").write_text("abc abc")
    Path("p.jsonl").write_text('{"prompt": "a", "response": "ab"}\n')

    def spy(owner, name, *names):
        original = getattr(owner, name)

        def call(*arguments, **options):
            heard.update(zip(names, arguments, strict=False))
            heard.update(options)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    spy(tinylm.evaluation, "score_text", "model", "tokenizer", "text")
    spy(tinylm.evaluation, "exact_match", "generator", "prompts", "expected")
    spy(tinylm.evaluation, "score_answers")
    spy(tinylm.data, "find_template", "template")
    spy(score_command, "pick_device", "device")
    counts = {True: 0, False: 0}
    for pair in combinations(SCORE, 2):
        words = [word for name in pair for word in SCORE[name][0]]
        words += [] if {"--text", "--pairs"} & {*words} else ["--text", "t.txt"]
        heard.clear()
        code, out, err = load("score")("--model", "model", *words)
        heard["shown"] = out.count("answered")
        counts[code == 2] += 1
        both = {"--text", "--pairs"} <= {*words}
        assert (code == 2) == both and (not both or err.count("\n") == 1), (pair, err)
        if both:
            assert any(f"{name}: does not work with" in err for name in pair) or "either --text or --pairs" in err
        for name in pair if not both else ():
            argument, value = SCORE[name][1]
            assert heard[argument] == value, (pair, heard)
    print(f"{sum(counts.values())} pairs: {counts[False]} work, {counts[True]} are refused by name")


# --- tokenizer and export

TRAIN: dict[str, tuple[list[str], dict[str, Any]]] = {
    **{f"--kind {kind}": (["--kind", kind], {"kind": kind}) for kind in tokenizer_command.KINDS},
    "--vocab-size": (["--vocab-size", "280"], {"vocab_size": 280}),
    "--pattern": (["--pattern", "gpt4"], {"pattern": "gpt4"}),
    "--normalization": (["--normalization", "nfkc"], {"normalization": "nfkc"}),
    "--min-frequency": (["--min-frequency", "2"], {"min_frequency": 2}),
    "--special-tokens": (["--special-tokens", "<a>"], {"special_tokens": ["<a>"]}),
    "--memory-limit": (["--memory-limit", "50"], {"memory_limit": 50}),
    "--processes": (["--processes", "1"], {"processes": 1}),
    "--overwrite": (["--overwrite"], {}),
}


@pytest.mark.slow
def test_each_pair_of_options_that_train_a_tokenizer_works_or_is_refused_by_name(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("the cat, the hat: it's 12 o'clock\n" * 20)
    parser = {name for action in tokenizer_command.train_parser()._actions for name in action.option_strings}
    named = {name.split()[0] for name in TRAIN}
    assert parser - named == {"-h", "--help", "--debug", "--out"}
    counts = {True: 0, False: 0}
    for pair in combinations(TRAIN, 2):
        if all(name.startswith("--kind") for name in pair):
            continue  # the last one counts, as of any option that is given twice
        settings = {"kind": "bpe"} | TRAIN[pair[0]][1] | TRAIN[pair[1]][1]
        code, out, err = load("tokenizer")("train", "a.txt", "--out", "t.json", *TRAIN[pair[0]][0], *TRAIN[pair[1]][0])
        counts[code == 2] += 1
        kind = settings.pop("kind")
        allowed = tokenizer_command.OPTIONS.get(kind, set())
        useless = {f"--{name.replace('_', '-')}" for name in settings if name != "special_tokens"} - allowed
        assert (code, bool(out)) == ((2, False) if useless else (0, True)), (pair, err)
        if useless:
            assert any(err == f"tinylm: error: {n}: does not work with --kind {kind}; leave it out\n" for n in useless)
            continue
        if kind != "word":
            special = ["[UNK]", END_OF_TEXT] if kind == "wordpiece" else [END_OF_TEXT]
            settings = {"special_tokens": special} | settings
        assert load_tokenizer("t.json") == tokenizer_class(kind).train(["a.txt"], **settings), pair
        Path("t.json").unlink()
    print(f"{sum(counts.values())} pairs: {counts[False]} work, {counts[True]} are refused by name")


@pytest.mark.parametrize("overwrite", [False, True])
def test_each_option_of_the_exports_works_with_each_other(load, folder, tmp_path, monkeypatch, overwrite):
    """`export` and `tokenizer export`: each format, new or over an earlier output; `inspect` in each colour."""
    monkeypatch.chdir(tmp_path)
    model = folder / "model"
    more = ["--overwrite"] if overwrite else []
    formats = [("hf", model), ("tinylm", tmp_path / "hf")]
    for (to, source), turn in product(formats, (1, 2)):
        code, _, err = load("export")("--model", source, "--to", to, "--out", to, *more)
        assert code == (0 if turn == 1 or overwrite else 73), err
    load("tokenizer")("train", folder / "p.txt", "--kind", "byte", "--out", "b.json")
    load("tokenizer")("train", folder / "p.txt", "--vocab-size", 258, "--out", "t.json")
    load("tokenizer")("train", folder / "p.txt", "--kind", "unigram", "--vocab-size", 300, "--out", "u.json")
    bert = [
        "--kind",
        "wordpiece",
        "--pattern",
        "bert",
        "--special-tokens",
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    ]
    load("tokenizer")("train", folder / "p.txt", *bert, "--out", "w.json")
    sources = {"sentencepiece": "u.json", "bert": "w.json"}  # the others write BPE
    for to, turn in product(tokenizer_command.WRITERS, (1, 2)):
        code, _, err = load("tokenizer")("export", sources.get(to, "t.json"), "--to", to, "--out", f"out-{to}", *more)
        assert code == (0 if turn == 1 or overwrite else 73), err
    for choice, colored in (("auto", False), ("always", True), ("never", False)):
        assert ("\x1b[" in load("tokenizer")("inspect", "b.json", "ab", "--color", choice)[1]) == colored
