"""The glossary and the references are complete, and what they link exists."""

import contextlib
import io
import re

import pytest

from tests.docs.runner import ROOT
from tinylm.commands import COMMANDS, run_command

DOCS = ROOT / "docs"
GLOSSARY, REFERENCES = ((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("glossary", "references"))
PAGES = ("glossary", "references", "tips", "lecturer", "contributing")
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?![a-z]+:)(?P<target>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")

# Terms of the field, by the heading that explains them: a pattern of the words in which they occur.
TERMS = {
    "ablation": "ablations?", "few-shot": "num-fewshot", "grammar": "grammars?", "preference": "preferences?",
    "sublayer": "sublayers?", "sweep": "sweeps?",
    "accuracy": r"accurac(y|ies)", "activation": "activations?", "activation checkpointing": "activation_checkpointing",
    "adam": "adamw?", "adapter": "adapters?", "attention": "attention", "batch": "batch(es)?|batch[ _-]size",
    "beam search": "beam search|beams", "bfloat16": "bf16|bfloat16", "bias": "bias(es)?", "block": "blocks?",
    "bits per byte": "bits per byte|bpb", "byte pair encoding": "bpe", "chat template": "chat template|template",
    "checkpoint": "checkpoints?", "clipping": "clipping", "completion": "completions?", "context": "context",
    "corpus": "corpus", "distributed data parallelism": "ddp", "document mask": "document_mask", "dropout": "dropout",
    "embedding": "embeddings?", "entropy": "entropy", "epoch": "epochs?", "exact match": "exact match",
    "feed-forward layer": "feed-forward|feedforward", "finetuning": "finetun(e|ing)",
    "floor": "floor|above the best possible", "flop": "[GT]?FLOPs?", "freezing": "frozen|freeze", "fsdp": "fsdp",
    "gelu": "gelu", "gradient": "gradients?", "gradient norm": "grad_norm|norm of the gradient",
    "greedy decoding": "greedy", "head": "heads?", "grouped-query attention": "multi-query|num_kv_heads",
    "kernel": "kernels?", "query, key, value": "quer(y|ies)|keys?/values?", "kv cache": "kv-cache|KV cache",
    "layernorm": "layernorm", "learning rate": "learning rates?|lr", "linear layer": "linear layers?",
    "logit lens": "(logit )?lens", "logits": "logits?", "lora": "lora", "loss": "loss(es)?", "mfu": "mfu",
    "micro-batch": "micro_batch_size|micro-batch(es)?", "min-p": "min-p", "momentum": "momentum", "muon": "muon",
    "mup": "mup", "nat": "nats?", "norm": "norms?", "optimizer": "optimizers?", "overlay": "overlays?",
    "packing": "packing", "parameter": "parameters?", "perplexity": "perplexity",
    "positional encoding": "positional_encoding", "precision": "precision|32-true", "projection": "projections?",
    "prompt": "prompts?", "qk-norm": "qk_norm|qk-norm", "quantization": "quantiz(e[sd]?|ation)", "rank": "ranks?",
    "relu": "relu2?", "repetition penalty": "[a-z]+-penalty", "residual stream": "(residual )?stream",
    "rmsnorm": "rmsnorm", "rotary positions": "rotary", "run": "runs?", "sampling": "sampling",
    "scaling law": "scaling laws?", "schedule": "schedule|cosine", "seed": "seeds?", "sgd": "sgd",
    "sinusoidal positions": "sinusoidal", "sliding window": "sliding_window",
    "special token": "special tokens?|end-of-text token",
    "speculative decoding": "speculative decoding|draft model|prompt lookup", "split": "splits?",
    "standard error": "standard error", "step": "steps?", "stop string": "stop strings?", "swiglu": "swiglu",
    "temperature": "temperature", "tensor parallelism": "tensor_parallel", "throughput": "throughput|tokens/s",
    "tied embeddings": "tie_embeddings|untied", "token": "tokens?", "tokenizer": "tokenizers?", "top-k": "top-k",
    "top-p": "top-p", "transformer": "transformers?", "typical sampling": "typical(-p)?", "validation": "validations?",
    "vocabulary": "vocabular(y|ies)|vocab[_-]size", "warmup": "warmup(_steps)?", "weight": "weights?",
    "weight decay": "weight[_ ]decay", "width": "widths?|d_model",
}  # fmt: skip


def entries() -> dict[str, str]:
    """The text of each entry of the glossary, by its heading in lower case."""
    parts = re.split(r"^## (.+)$", GLOSSARY, flags=re.MULTILINE)[1:]
    return {heading.lower(): text for heading, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.fixture(scope="module")
def words_of_users() -> str:
    """The help of all commands and the first output in README, which a new user reads first."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for name in COMMANDS:
            with contextlib.suppress(SystemExit):
                run_command(name, ["--help"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return printed.getvalue() + readme.partition("## What a run prints")[2].partition("\n## ")[0]


def test_terms_of_help_texts_and_of_the_first_output_are_in_the_glossary(words_of_users):
    found = {
        term for term, pattern in TERMS.items() if re.search(rf"(?<![\w-])({pattern})(?![\w-])", words_of_users, re.I)
    }
    assert len(found) > 90
    assert found - entries().keys() == set()
    assert "perplexity" in found and "mfu" in found  # which README's output does not explain


def test_entries_are_sorted_explained_and_say_where_they_live():
    names = list(entries())
    assert names == sorted(names)
    for name, text in entries().items():
        assert len(text.split()) >= 5 and LINK.search(text), name


def test_formulas_of_the_parts_are_written_out():
    for name in ("softmax", "swiglu", "rmsnorm", "layernorm", "muon", "adam", "rotary positions", "lora", "attention",
                 "loss", "bits per byte", "mfu", "entropy", "kl divergence", "dpo", "grpo", "scaling law"):  # fmt: skip
        assert re.search(r"^    \S.*[=←→]", entries()[name], re.MULTILINE), name


def anchors(path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_what_they_name(page):
    path = DOCS / f"{page}.md"
    for link in LINK.finditer(path.read_text(encoding="utf-8")):
        target = path.parent / link["target"] if link["target"] else path
        assert target.exists(), link[0]
        if link["anchor"]:
            assert link["anchor"] in anchors(target), link[0]
        name = re.fullmatch(r"`(\w+)`", link["text"])
        if name and target.suffix == ".py":
            assert re.search(rf"^\s*(def|class) {name[1]}\b", target.read_text(encoding="utf-8"), re.MULTILINE), link[0]


def paragraphs_of_the_tutorial() -> list[str]:
    """Prose in the order of reading, without headings, contents, code and captions."""
    chapters = sorted((DOCS / "tutorial").glob("*.md"), key=lambda path: int(path.stem.partition("-")[0]))
    found = []
    for path in (DOCS / "TUTORIAL.md", *chapters):
        text = path.read_text(encoding="utf-8").partition("## Build it")[0]
        text = re.sub(
            r"^```.*?^```$|^#[^\n]*|^\[Next: [^\n]*|!\[[^\]]*\]\([^)]*\)", "", text, flags=re.MULTILINE | re.DOTALL
        )
        found += [each for each in text.split("\n\n") if not re.match(r"\s*\d+\. \[", each)]
    return found


def test_terms_of_the_tutorial_are_explained_where_they_first_appear():
    paragraphs, explained = paragraphs_of_the_tutorial(), {}
    for number, text in enumerate(paragraphs):
        for term in re.findall(r"\*\*([^*]+)\*\*", text):  # a term is bold where it is explained
            explained.setdefault(term.lower(), number)
    assert len(explained) > 80
    for term, number in explained.items():
        word = re.compile(rf"(?<![\w-]){re.escape(term.removesuffix('s'))}(s|es)?(?![\w-])", re.IGNORECASE)
        first = next(each for each, text in enumerate(paragraphs) if word.search(text))
        assert first == number or "chapter" in paragraphs[first], (
            f"{term}: used before it is explained, in {paragraphs[first]}"
        )


# --- references

NAME = r"[A-Z][\w-]{1,24}"
CITATION = re.compile(
    rf"\b(?:({NAME}) et al\.?|({NAME})(?:(?:, | and | & ){NAME})*|(nostalgebraist)),? \(?((?:19|20)\d\d)\b"
)
MONTHS = {"May", "August"}  # of versions


def citations(text: str) -> set[tuple[str, str]]:
    """First author and year of each citation: `Hu et al. 2021`, `Ba, Kiros, Hinton 2016`, `Gage 1994`, ..."""
    found = {(match[1] or match[2] or match[3], match[4]) for match in CITATION.finditer(text)}
    return {(name, year) for name, year in found if name not in MONTHS and not name.isupper()}


def test_citations_are_recognized():
    text = "(Shazeer 2019; Ba, Kiros, Hinton 2016), Hoffmann et al. (2022), Witten and Bell 1991, May 2023, WIDE 2000"
    assert citations(text) == {("Shazeer", "2019"), ("Ba", "2016"), ("Hoffmann", "2022"), ("Witten", "1991")}


def test_every_citation_has_a_row_that_links_the_code_that_cites_it():
    rows = [line for line in REFERENCES.splitlines() if line.startswith("| ")]
    linked: dict[tuple[str, str], str] = {}
    for row in rows:
        for key in citations(row.split("|")[1]):
            linked[key] = linked.get(key, "") + row  # two papers may share author and year
    assert len(linked) > 60
    code = [path for folder in ("tinylm", "scripts", "configs") for path in (ROOT / folder).rglob("*.*")]
    documents = [*(path for path in DOCS.rglob("*.md") if path.stem != "references"), ROOT / "README.md"]
    seen = set()
    for path in code + documents:
        if path.suffix not in (".py", ".yaml", ".md"):
            continue
        for key in citations(path.read_text(encoding="utf-8")):
            seen.add(key)
            assert key in linked, f"{path}: {key} has no row in docs/references.md"
            if path in code:
                assert f"(../{path.relative_to(ROOT).as_posix()})" in linked[key], f"{path}: not linked by {key}"
    assert linked.keys() - seen == set()  # a row that nothing cites


# --- numbers of lines, and the citation file


def test_the_script_of_twenty_lines_has_at_most_twenty():
    script = (ROOT / "scripts/examples/twenty_lines.py").read_text(encoding="utf-8")
    assert len(script.splitlines()) <= 20


def test_the_tutorial_counts_no_lines_of_code():
    number = r"(\d+|two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|a dozen|a few)"
    for path in (DOCS / "TUTORIAL.md", *(DOCS / "tutorial").glob("*.md")):
        text = path.read_text(encoding="utf-8").partition("## Build it")[0]
        assert not re.search(rf"\b{number} lines\b", text), path.name


def test_citation_file_has_the_version_of_the_package():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert (
        re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1]
        == re.search(r"^version: (.+)$", cited, re.MULTILINE)[1]
    )
