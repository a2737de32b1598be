"""The exercises "Build it" of the tutorial: the gaps fail, the solutions pass, and plausible mistakes are found."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.runner import ROOT, Result

BUILD = ROOT / "docs/tutorial/build"
NAMES = {int(path.name.partition("_")[0]): path.name for path in BUILD.glob("*.py")}
CHAPTERS = sorted((ROOT / "docs/tutorial").glob("*.md"))

MISTAKES = [  # chapter, what the solution has, what a mistaken one has, part of a property that it violates
    (1, "sorted(set(text))", "list(dict.fromkeys(text))", "is sorted"),
    (1, "self.ids[character] for", "self.characters.index(character) + 1 for", "those of the chapter"),
    (1, "for character in text]", "for character in text if character in self.ids]", "outside the vocabulary"),
    (1, "self.ids[character] for", '"".join(self.characters).find(character) for', "outside the vocabulary"),
    (1, "ids[start + 1 : start + context + 1]", "ids[start : start + context]", "its targets"),
    (1, "ids[start + 1 : start + context + 1]", "ids[start + 1 : start + context]", "its targets"),
    (2, "-2 * torch.arange", "-1 * torch.arange", "frequencies of the width 4"),
    (2, "theta ** (", "10000.0 ** (", "another width and theta"),
    (2, "torch.arange(num_positions).float()", "torch.arange(1, num_positions + 1).float()", "angles of three"),
    (2, "second * cos + first * sin", "second * cos - first * sin", "turned by a right angle"),
    (2, "turns.cos(), turns.sin()", "turns.cos(), -turns.sin()", "turned by a right angle"),
    (2, "x.chunk(2, dim=-1)", "(x[..., ::2], x[..., 1::2])", "tinylm's rotate"),
    (2, "x.chunk(2, dim=-1)", "x.chunk(2, dim=1)", "two texts"),
    (3, "scores - scores.amax(dim=-1, keepdim=True)", "scores", "(1000, 1000)"),
    (3, "sum(dim=-1, keepdim=True)", "sum()", "along the last axis"),
    (3, 'scores.masked_fill(later, float("-inf"))', "scores", "later ones"),
    (3, 'softmax(scores.masked_fill(later, float("-inf")))', "softmax(scores).masked_fill(later, 0.0)", "sums to 1"),
    (3, "diagonal=1", "diagonal=0", "attends to all it sees"),
    (3, " / E**0.5", "", "at the width 16"),
    (3, " / E**0.5", " / E", "at the width 16"),
    (3, "x @ key_weight.T, x @ value_weight.T", "x @ value_weight.T, x @ key_weight.T", "a head of two texts"),
    (3, "key.transpose(-1, -2)", "key.T", "a head of two texts"),
    (4, ".mean(dim=-1, keepdim=True)", ".sum(dim=-1, keepdim=True)", "(0.2, 1.4)"),
    (4, "return x / (x.square()", "x = x - x.mean(dim=-1, keepdim=True)\n    return x / (x.square()", "PyTorch's"),
    (4, " + eps)", ")", "norm of zeros"),
    (4, ".sqrt() * weight", ".sqrt()", "any weight"),
    (4, "gate * torch.sigmoid(gate)", "torch.sigmoid(gate)", "gate goes through silu"),
    (4, "x = x + attention(attention_norm(x))", "x = attention(attention_norm(x))", "as it is"),
    (4, "x = x + attention(attention_norm(x))", "x = attention_norm(x)\n    x = x + attention(x)", "add nothing"),
    (4, "attention(attention_norm(x))", "attention(x)", "block is tinylm's"),
    (4, "x = x + attention(attention_norm(x))", "x += attention(attention_norm(x))", "is not changed"),
    (4, "feedforward(feedforward_norm(x))", "feedforward(x)", "block is tinylm's"),
    (5, "dy.T @ x", "x.T @ dy", "gradient of the weight"),
    (5, "logits - logits.max(axis=1, keepdims=True)", "logits", "overflow"),
    (5, ", dlogits / len(targets)", ", dlogits", "slope"),
    (5, "dlogits[rows, targets] -= 1", "dlogits[:, targets] -= 1", "PyTorch's"),
    (5, "    dlogits[rows, targets] -= 1\n", "", "(-1/2, 1/2)"),
    (5, "weight = weight - rate", "weight = weight + rate", "20 steps"),
    (5, "weight = weight - rate * dweight", "weight -= rate * dweight", "not changed"),
    (6, "(step + 1) / (warmup_steps + 1)", "step / warmup_steps", "begin 2, 4, 6, 8"),
    (6, "(step + 1) / (warmup_steps + 1)", "(step + 1) / warmup_steps", "begin 2, 4, 6, 8"),
    (6, "(total_steps - warmup_steps)", "total_steps", "halfway"),
    (6, "if norm > max_norm:", "if True:", "smaller gradients"),
    (6, "gradient *= max_norm / norm", "gradient *= max_norm / gradient.norm()", "(3) and (4)"),
    (6, "gradient *= max_norm / norm", "gradient = gradient * max_norm / norm", "(3) and (4)"),
    (6, "        model.zero_grad()\n", "", "12 batches"),
    (6, "learning_rate(step, len", "learning_rate(step + 1, len", "12 batches"),
    (6, "        clip([", "        list([", "12 batches"),
    (7, "logits / temperature", "logits * temperature", "(2, 4)"),
    (7, "logits < smallest", "logits <= smallest", "top-k 2"),
    (7, "probabilities.cumsum(dim=-1) - probabilities ", "probabilities.cumsum(dim=-1) ", "(0.2, 0.5, 0.3)"),
    (7, "excluded[order] = before >= p", "excluded = before >= p", "wherever the likely tokens"),
    (7, "    excluded[order[0]] = False\n    return", "    excluded[order[0]] = p < 0.1\n    return", "small p"),
    (7, "cumsum(dim=-1) > u", "cumsum(dim=-1) >= u", "0.25"),
    (7, "    if temperature == 0:\n        return int(logits.argmax())\n", "", "temperature 0"),
    (7, "choose(logits.softmax(dim=-1), u)", "choose(logits.exp(), u)", "0.8 and 0.2"),
    (7, "    logits = apply_temperature(logits, temperature)\n    if k", "    if k", "0.8 and 0.2"),
    (8, "counts.get(pair, 0) + count", "counts.get(pair, 0) + 1", "3 times"),
    (8, "            i += 2\n", "            i += 1\n", "(9, 1, 2)"),
    (8, "key=lambda pair: (-counts[pair], pair)", "key=lambda pair: (counts[pair], pair)", "first merge"),
    (8, "(-counts[pair], pair)", "(-counts[pair], -pair[0])", "first merge"),
    (8, " and (counts := count_pairs(words))", "", "no pair is left"),
    (8, "for i, pair in enumerate(merges):", "for i, pair in reversed([*enumerate(merges)]):", "a and bc"),
    (8, "256 + len(merges)", "len(merges)", "first merge"),
    (9, "linear.requires_grad_(False)", "linear", "20 are trainable"),
    (9, "torch.zeros(linear.out_features, rank)", "torch.randn(linear.out_features, rank)", "new layer computes"),
    (9, "torch.randn(rank, linear.in_features)", "torch.zeros(rank, linear.in_features)", "first step"),
    (9, "self.scale = alpha / rank", "self.scale = alpha", "tinylm's"),
    (9, "self.scale = alpha / rank", "self.scale = 1.0", "by hand"),
    (9, "self.linear.weight + self.scale * (", "self.linear.weight + (", "W + scale"),
    (9, "self.linear.weight + self.scale", "self.linear.weight.add_(self.b @ self.a) + self.scale", "as it is"),
    (9, "nn.Parameter(torch.zeros(", "(torch.zeros(", "20 are trainable"),
    (10, "np.array(losses) - floor", "np.array(losses)", "40 and 0.5"),
    (10, "float(-slope)", "float(slope)", "power 1/2"),
    (10, "float(np.exp(at_zero))", "float(at_zero)", "factor 2"),
    (10, "np.polyfit(np.log(sizes)", "np.polyfit(np.log10(sizes)", "power 1/2"),
    (10, "excess.min() <= 0", "excess.min() < 0", "at the floor"),
    (10, "budget / (6 * size)", "budget / size", "1e5"),
    (10, "budget / (6 * size)", "budget / 6", "1e5"),
    (11, "rewards - rewards.mean(dim=1, keepdim=True)", "rewards", "(1, -1, -1, 1)"),
    (11, "rewards.mean(dim=1, keepdim=True)", "rewards.mean()", "five groups"),
    (11, "above.square().mean(dim=1, keepdim=True).sqrt()", "rewards.std(dim=1, keepdim=True)", "(1, -1, -1, 1)"),
    (11, "torch.where(deviation > 0, above / deviation.clamp(min=1e-12), 0.0)", "above / deviation", "equal rewards"),
    (11, "(log_start - log_p).exp() - (log_start - log_p)", "(log_p - log_start).exp() - (log_p - log_start)", "1/e"),
    (11, "return -(torch.where", "return (torch.where", "loss 4"),
    (11, ".sum(dim=1) / counts.sum(dim=1)).mean()", ".sum() / counts.sum())", "count the same"),
    (11, "torch.where(counts, gains, 0.0)", "gains", "beyond the end"),
    (11, "- beta * divergence", "+ beta * divergence", "beta times"),
    (11, "(chosen - rejected)", "(rejected - chosen)", "5 and -5"),
    (11, "torch.nn.functional.logsigmoid(", "(lambda z: z.sigmoid().log())(", "finite"),
]  # fmt: skip


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The module docs/tutorial/check.py."""
    path = ROOT / "docs/tutorial/check.py"
    module = ModuleType("check")
    module.__file__ = str(path)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(module))
    return module


def written(folder: Path, number: int, *changes: tuple[str, str]) -> Path:
    """A reader's file: the solution of a chapter with changes."""
    text = (BUILD / "solutions" / NAMES[number]).read_text(encoding="utf-8")
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    path = folder / NAMES[number]
    path.write_text(text, encoding="utf-8")
    return path


def signatures(path: Path) -> dict[str, str]:
    """Arguments and docstring of everything that a file defines, by name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    found = {
        node.name: f"{ast.unparse(node.args) if isinstance(node, ast.FunctionDef) else ''} {ast.get_docstring(node)}"
        for node in nodes
    }
    return found | {"": str(ast.get_docstring(tree))}


def test_there_is_something_to_build_for_each_chapter(check):
    numbers = [int(path.name.partition("-")[0]) for path in CHAPTERS]
    assert sorted(NAMES) == sorted(numbers) == list(check.chapters())
    for folder in ("solutions", "checks"):
        assert {path.name for path in (BUILD / folder).glob("*.py")} == set(NAMES.values())
    for path in CHAPTERS:
        text, name = path.read_text(encoding="utf-8"), NAMES[int(path.name.partition("-")[0])]
        assert f"[{name}](build/{name})" in text and f"(build/solutions/{name})" in text


@pytest.mark.parametrize("number", sorted(NAMES))
def test_gaps_fail_kindly_and_the_solution_passes(number, check):
    name = NAMES[number]
    gaps = list(check.check(name, BUILD / name))
    assert gaps and {result.state for result in gaps} == {"to do"}
    assert all("is not written yet" in result.difference for result in gaps)
    solved = list(check.check(name, BUILD / "solutions" / name))
    assert [result for result in solved if result.state != "ok"] == []
    assert [result.sentence for result in solved] == [result.sentence for result in gaps]
    assert len({result.sentence for result in solved}) == len(solved)
    assert signatures(BUILD / name) == signatures(BUILD / "solutions" / name)


@pytest.mark.parametrize(("number", "before", "after", "violated"), MISTAKES)
def test_a_plausible_mistake_is_found(number, before, after, violated, check, tmp_path):
    path = written(tmp_path, number, (before, after))
    wrong = [result for result in check.check(NAMES[number], path) if result.state == "wrong"]
    assert any(violated in result.sentence for result in wrong), wrong
    assert all(result.difference for result in wrong)


def test_each_chapter_has_mistakes_that_are_found():
    assert all(sum(mistake[0] == number for mistake in MISTAKES) >= 2 for number in NAMES)


LAST = "return attention_weights(query, key) @ value"  # line 49 of 3_head.py


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (LAST, LAST.removeprefix("return "), "expected a tensor of shape (5, 16), found None; is a `return` missing?"),
        (LAST, "return attention_weights(query, key)", "expected the shape (5, 16), found (5, 5)"),
        (LAST, "return 'x'", "expected a tensor of shape (5, 16), found 'x'"),
        (LAST, "return value @ value", "line 49: RuntimeError: "),
        (LAST, "while True:\n        query = query", "no result after 0.2 seconds; is there a loop"),
        (LAST, "raise SystemExit", "line 49: SystemExit"),
        (LAST, "return attend(query, key, value)", "RecursionError: maximum recursion depth exceeded"),
        ("key: Tensor, value: Tensor) ->", "value: Tensor) ->", "TypeError: attend() takes 2 positional arguments"),
        ("def attend(", "def attended(", "3_head.py does not define attend; "),
        ("def attend(", "def attend(:", "3_head.py, line "),
        ("import torch\n", "import torch\n1 / 0\n", "3_head.py, line 4: ZeroDivisionError: division by zero"),
        ("import torch\n", "import torch\nwhile True:\n    pass\n", "no result after 0.2 seconds"),
    ],
)
def test_an_error_of_the_reader_is_one_clear_line(before, after, line, check, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "check", lambda name, path, run=check.check: run(name, path, seconds=0.2))
    written(tmp_path, 3, (before, after))
    assert check.main(["3"]) == 1
    output = capsys.readouterr().out
    assert [each for each in output.splitlines() if line in each], output
    assert "Traceback" not in output and "NotImplemented" not in output
    assert sys.gettrace() is None


def test_the_contents_show_what_the_check_prints(check, tmp_path, monkeypatch, capsys):
    contents = (ROOT / "docs/TUTORIAL.md").read_text(encoding="utf-8")
    expected = contents.partition("check.py 3\n3. ")[2].partition("```")[0]
    projected = "    return attend(x @ query_weight.T, x @ key_weight.T, x @ value_weight.T)"
    masked = 'scores.masked_fill(later, float("-inf"))'
    written(tmp_path, 3, (masked, "scores"), (projected, "    raise NotImplementedError"))
    monkeypatch.chdir(tmp_path)
    assert check.main(["3"]) == 1
    assert Result(0, "3. " + expected, capsys.readouterr().out).good


def test_the_reader_works_on_a_copy_that_is_never_overwritten(check, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert check.main(["8"]) == 1
    assert "8_bpe.py is not in this folder; python " in capsys.readouterr().out
    assert check.main(["8", "--start"]) == 0
    assert (tmp_path / "8_bpe.py").read_bytes() == (BUILD / "8_bpe.py").read_bytes()
    (tmp_path / "8_bpe.py").write_text("mine", encoding="utf-8")
    assert check.main(["8", "--start"]) == 1
    assert "8_bpe.py exists and was left as it is" in capsys.readouterr().out
    assert (tmp_path / "8_bpe.py").read_text(encoding="utf-8") == "mine"
    written(tmp_path, 8)
    assert check.main(["8"]) == 0
    assert "All 13 properties hold." in capsys.readouterr().out
    (tmp_path / "1_tokenizer.py").write_bytes((BUILD / "1_tokenizer.py").read_bytes())
    assert check.main([]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split(None, 1)[0] for line in listed[:11]] == [str(number) for number in range(1, 12)]
    assert listed[0].endswith("0 of 9 properties hold") and listed[7].endswith("done")
    assert listed[2].endswith("not started")
    other = written(tmp_path / "..", 10)
    assert check.main(["10", "--file", os.path.relpath(other)]) == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["12"], "the chapters are 1 to 11, got 12"),
        (["--start"], "--start and --file need the number of a chapter"),
        (["3", "--start", "--file", "x.py"], "leave one of them out"),
    ],
)
def test_a_mistyped_command_is_refused(arguments, line, check, capsys):
    with pytest.raises(SystemExit, match="2"):
        check.main(arguments)
    assert line in capsys.readouterr().err


def test_a_missing_file_is_named(check, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert check.main(["3", "--file", "my.py"]) == 1
    assert "my.py: No such file or directory" in capsys.readouterr().out


def test_the_script_runs_from_any_folder(tmp_path):
    words = [sys.executable, str(ROOT / "docs/tutorial/check.py"), "1"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 1 and done.stdout.startswith("1_tokenizer.py is not in this folder"), done
