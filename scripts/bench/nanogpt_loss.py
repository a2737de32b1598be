"""Computes the loss of a trained nanoGPT on the whole validation split, defined like tinylm's `val/loss`.

    git clone https://github.com/karpathy/nanoGPT && cd nanoGPT && python data/shakespeare_char/prepare.py
    python train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 \\
        --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 \\
        --dropout=0.0
    python scripts/bench/nanogpt_loss.py --nanogpt nanoGPT

The windows are adjacent, so that every token but the first is a target exactly once.
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tinylm.data.evaluation_rows import gather_rows, window_rows


def main() -> None:
    """Prints the loss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="the clone in which the model was trained")
    parser.add_argument("--out-dir", default="out-shakespeare-char")
    folder = parser.parse_args().nanogpt
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    nanogpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)
    # a nanoGPT checkpoint contains plain numbers and tensors only
    checkpoint = torch.load(folder / parser.parse_args().out_dir / "ckpt.pt", weights_only=True)
    model = nanogpt.GPT(nanogpt.GPTConfig(**checkpoint["model_args"])).eval()
    model.load_state_dict(checkpoint["model"])
    context = checkpoint["model_args"]["block_size"]
    tokens = np.fromfile(folder / "data/shakespeare_char/val.bin", dtype=np.uint16)
    rows, nats, count = window_rows(len(tokens), context), 0.0, 0
    for first in range(0, len(rows.begins), 64):
        batch = gather_rows(tokens, rows, slice(first, first + 64))
        with torch.no_grad():
            logits, _ = model(
                batch.inputs.contiguous(), batch.targets.clamp(min=0)
            )  # nanoGPT returns the logits of all positions only if it gets targets
        nats += F.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="sum").item()
        count += batch.num_targets
    print(f"nanoGPT, step {checkpoint['iter_num']}: {nats / count:.4f} nats per token over {count:,} tokens")


if __name__ == "__main__":
    main()
