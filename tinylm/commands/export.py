"""Converts models to and from Hugging Face folders.

tinylm export --model runs/small --to hf --out small-hf        # for Hugging Face's transformers
tinylm export --model gpt2 --to tinylm --out runs/gpt2         # from a folder of theirs
"""

from collections.abc import Callable
from pathlib import Path

from tinylm.console import Parser, announce_model
from tinylm.errors import CannotCreateError, notice
from tinylm.locate import command


def to_huggingface(model: str, out: Path) -> list[str]:
    """Writes a folder for transformers."""
    _, found = announce_model(model)

    from tinylm.bundle import load_bundle
    from tinylm.interop import export_huggingface

    bundle = load_bundle(found)
    architecture = export_huggingface(bundle.model, bundle.tokenizer, out, bundle.info)
    return [
        f"{out}: {architecture}, {bundle.model.num_parameters():,} parameters; how to use it: {out / 'README.md'}",
        f'to load it: AutoModelForCausalLM.from_pretrained("{out}"), AutoTokenizer.from_pretrained("{out}")',
    ]


def from_huggingface(model: str, out: Path) -> list[str]:
    """Writes a model folder of ours."""
    notice(f"reading {model}")
    from tinylm.bundle import save_bundle
    from tinylm.interop import load_huggingface

    network, tokenizer = load_huggingface(model)
    save_bundle(out, network, tokenizer, {"from": str(model)})
    return [
        f"{out}: a model folder, {network.num_parameters():,} parameters, {tokenizer.vocab_size:,} tokens",
        f"to hear it: {command('generate', '--model', out, '--prompt', 'Once upon a time')}",
    ]


# Each writes `out` from `model`, and returns what to say.
FORMATS: dict[str, Callable[[str, Path], list[str]]] = {"hf": to_huggingface, "tinylm": from_huggingface}


def run(arguments: list[str]) -> None:
    """Converts a model, and prints what was written and how to load it."""
    parser = Parser("export", __doc__)
    parser.add_argument("--model", required=True, help="a run, model folder or checkpoint; or a Hugging Face folder")
    parser.add_argument("--to", choices=[*FORMATS], required=True, help="hf: Hugging Face's folder; tinylm: from it")
    parser.add_argument("--out", type=Path, required=True, help="the output folder; it must be empty or not exist")
    options = parser.parse(arguments)
    check_free(options.out)
    print(*FORMATS[options.to](options.model, options.out), sep="\n")


def check_free(out: Path) -> None:
    """Refuses to write over what is there.

    Raises:
        CannotCreateError: unless it is nothing, or an empty folder.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise CannotCreateError(f"{out}: exists; give another --out, or remove it")
