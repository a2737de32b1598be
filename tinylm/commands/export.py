"""Converts models to and from Hugging Face's format.

tinylm export --model runs/small --to hf --out small-hf        # for Hugging Face transformers
tinylm export --model gpt2 --to tinylm --out runs/gpt2         # from a Hugging Face folder
"""

from collections.abc import Callable
from pathlib import Path

from tinylm.console import Parser, announce_model
from tinylm.errors import notice
from tinylm.locate import command
from tinylm.targets import HUGGINGFACE_FOLDER, MODEL_FOLDER, check_target


def run(arguments: list[str]) -> None:
    """Converts a model, and prints what was written and how to load it."""
    parser = Parser("export", __doc__)
    parser.add_argument("--model", required=True, help="run folder, model folder, checkpoint or Hugging Face folder")
    parser.add_argument("--to", choices=[*FORMATS], required=True, help="format to write: Hugging Face's or tinylm's")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_overwrite_option()
    options = parser.parse(arguments)
    print(*FORMATS[options.to](options.model, options.out, options.overwrite), sep="\n")


def to_huggingface(model: str, out: Path, overwrite: bool) -> list[str]:
    """Writes a folder for transformers, and returns the lines to print."""
    check_target(out, HUGGINGFACE_FOLDER, overwrite)
    _, found = announce_model(model)

    from tinylm.bundle import load_bundle
    from tinylm.interop import export_huggingface
    from tinylm.runs.figures import run_figures

    bundle = load_bundle(found)
    info = bundle.info | run_figures(Path(model))
    architecture = export_huggingface(bundle.model, bundle.tokenizer, out, info, overwrite)
    return [
        f"{out}: {architecture}, {bundle.model.num_parameters():,} parameters; how to use it: {out / 'README.md'}",
        f'to load it: AutoModelForCausalLM.from_pretrained("{out}"), AutoTokenizer.from_pretrained("{out}")',
    ]


def from_huggingface(model: str, out: Path, overwrite: bool) -> list[str]:
    """Writes a model folder, and returns the lines to print."""
    check_target(out, MODEL_FOLDER, overwrite)
    notice(f"reading {model}")
    from tinylm.bundle import save_bundle
    from tinylm.interop import load_huggingface

    network, tokenizer = load_huggingface(model)
    save_bundle(out, network, tokenizer, {"from": str(model)}, overwrite)
    what = f"a model folder, {network.num_parameters():,} parameters, {tokenizer.vocab_size:,} tokens"
    use = command("generate", "--model", out, "--prompt", "Once upon a time")
    return [f"{out}: {what}", f"to generate with it: {use}"]


FORMATS: dict[str, Callable[[str, Path, bool], list[str]]] = {"hf": to_huggingface, "tinylm": from_huggingface}
