"""Averages the weights of the last checkpoints of a run: tinylm average runs/small --last 5 --out small-average
or of several runs: tinylm average runs/a runs/b --out soup

It prints the loss of each model and of their average on a text. Without --text, models trained on the built-in stories
are measured on held-out ones.
"""

from pathlib import Path

from tinylm.commands.quantize import STORIES, check_out
from tinylm.console import Parser, check_at_least, table
from tinylm.errors import ConfigError, notice
from tinylm.files import read_chunks
from tinylm.locate import command


def run(arguments: list[str]) -> None:
    """Writes the model folder of the average and prints the losses."""
    parser = Parser("average", __doc__)
    add = parser.add_argument
    add("models", nargs="+", help="run folders, model folders or checkpoints")
    add("--last", type=int, help="average the last N checkpoints of each run (default: its best one)")
    add("--out", type=Path, required=True, help="output model folder")
    parser.add_overwrite_option()
    add("--text", type=Path, help="UTF-8 text file to measure the loss on (default: held-out stories of the run)")
    options = parser.parse(arguments)
    check_at_least(1, options, "last")
    text = None if options.text is None else "".join(read_chunks(options.text))
    for model in options.models:
        check_out(Path(model), options.out, options.overwrite)

    from tinylm.adapt.average import average, last_checkpoints
    from tinylm.bundle import load_bundle, save_bundle
    from tinylm.data.held_out import held_out_stories
    from tinylm.evaluation import score_text

    paths = [str(path) for path in options.models]
    if options.last is not None:
        paths = [str(path) for run in paths for path in last_checkpoints(run, options.last)]
    if len(paths) < 2:
        raise ConfigError(f"{paths[0]}: is one model; give several, or --last for the checkpoints of a run")
    mean = average(paths)
    save_bundle(options.out, mean.model, mean.tokenizer, mean.info, options.overwrite)
    texts = held_out_stories(Path(options.models[0]), STORIES) if text is None else [text]
    rows = [["", "loss", "bits/byte"]]
    for name, bundle in [*((path, None) for path in paths), (str(options.out), mean)] if texts else []:
        model = load_bundle(name) if bundle is None else bundle
        score = score_text(model.model, model.tokenizer, texts)
        rows.append([name, f"{score.loss:.4f}", f"{score.bits_per_byte:.4f}"])
    if texts:
        print(table(rows))
    notice(f"average of {len(paths)} models: {options.out}")
    notice(f"to generate with it: {command('generate', '--model', options.out)}")
