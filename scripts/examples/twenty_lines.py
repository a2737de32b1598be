"""Trains a model on the stories and generates text, in twenty lines: `python scripts/examples/twenty_lines.py`."""

import lightning.pytorch as pl

import tinylm
from tinylm.data import TextDataModule
from tinylm.generation import Generator
from tinylm.model import ModelConfig
from tinylm.training import LitTransformerLM, OptimizerConfig

data = TextDataModule("stories:4000", tokenizer="bpe:1024", max_seq_len=128, batch_size=8)
network = ModelConfig(vocab_size=data.vocab_size, d_model=96, num_layers=2, num_heads=4, max_seq_len=128)
module = LitTransformerLM(network, OptimizerConfig(name="muon", lr=0.01))
trainer = pl.Trainer(max_steps=200, gradient_clip_val=1.0, logger=False, enable_model_summary=False)
trainer.fit(module, datamodule=data)

model, tokenizer = tinylm.load(trainer.checkpoint_callback.best_model_path)
prompt = "Once upon a time"
print(prompt + Generator(model, tokenizer).generate(prompt, max_new_tokens=120, temperature=0.5, seed=1))
