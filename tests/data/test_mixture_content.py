"""A mixture of corpora: its shares, its share of ranks, its evaluation, and what it refuses."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tinylm.data import IGNORE, TextDataModule
from tinylm.errors import ConfigError, DataError, MissingInputError


@pytest.fixture
def module(tmp_path):
    """module(**options) is a data module of upper-case letters ("web") and of twice as many digits ("books")."""
    (tmp_path / "web.txt").write_text("ABCDEFGHIJ" * 60)
    (tmp_path / "books.txt").write_text("0123456789" * 120)

    def make(**options) -> TextDataModule:
        corpus = {"web": str(tmp_path / "web.txt"), "books": str(tmp_path / "books.txt")}
        options = dict(corpus=corpus, max_seq_len=7, batch_size=8, cache_dir=str(tmp_path / "cache")) | options
        data = TextDataModule(**options)
        data.trainer = trainer()
        return data

    return make


def trainer(world_size: int = 1, rank: int = 0, **options):
    """The attributes of a trainer that the loaders read."""
    fields = dict(accumulate_grad_batches=1, val_check_interval=1.0, limit_train_batches=1.0, global_step=0) | options
    fields = dict(max_steps=100, max_epochs=-1, state=SimpleNamespace(fn="fit")) | fields
    return SimpleNamespace(world_size=world_size, global_rank=rank, **fields)


def are_web(data: TextDataModule, ids: torch.Tensor) -> list[bool]:
    """Whether each row of a batch is of the letters; it is of the letters or the digits as a whole."""
    texts = [data.tokenizer.decode(row) for row in ids]
    assert all(text.isalpha() or text.isdigit() for text in texts)
    return [text.isalpha() for text in texts]


@pytest.mark.parametrize(
    ("weights", "of_8"), [(None, 8 / 3), ({"web": 3, "books": 1}, 6), ({"web": 0.5, "books": 0.5}, 4)]
)
def test_every_batch_has_its_share_of_each_source(module, weights, of_8):
    data = module(weights=weights)
    data.setup("fit")
    counts = [sum(are_web(data, batch.inputs)) for batch in data.train_dataloader()]
    assert all(abs(count - of_8) <= 1 for count in counts)
    assert abs(sum(counts) - of_8 * len(counts)) <= 0.5


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_ranks_and_micro_batches_together_are_the_global_batches_in_order(module, world_size, micro_batch_size):
    whole, shared = module(seed=3), []
    whole.setup("fit")
    expected = [(batch.inputs, batch.targets) for batch in whole.train_dataloader()]
    for rank in range(world_size):
        data = module(seed=3, micro_batch_size=micro_batch_size)
        data.trainer = trainer(world_size, rank)
        data.setup("fit")
        shared.append(list(data.train_dataloader()))
    accumulate = 8 // world_size // micro_batch_size
    for step, (inputs, targets) in enumerate(expected):
        parts = [batch for rank in shared for batch in rank[step * accumulate : (step + 1) * accumulate]]
        assert torch.equal(torch.cat([part.inputs for part in parts]), inputs)
        assert torch.equal(torch.cat([part.targets for part in parts]), targets)
        assert {part.num_targets for part in parts} == {8 * 7}


@pytest.mark.parametrize("step", [1, 17, 1000])
def test_training_goes_on_at_any_step(module, step):
    data = module()
    data.setup("fit")
    data.trainer.global_step = step
    resumed = next(iter(data.train_dataloader()))
    again = module().content.training(1, 1, 0)[step]
    assert torch.equal(resumed.inputs, again.inputs)


def test_every_token_of_a_source_but_its_first_is_a_target_in_each_of_its_epochs(module):
    data = module()
    data.setup("fit")
    order = data.content.order
    for name, size in (("web", 540), ("books", 1080)):
        own = order.orders[name]
        starts = own.sample_starts(np.arange(own.num_windows))
        assert {start + 1 + i for start in starts for i in range(7)} == set(range(1, size))


@pytest.mark.parametrize("world_size", [1, 3])
def test_validation_reads_every_token_once_and_names_the_source(module, world_size):
    texts = {"web": [], "books": []}
    for rank in range(world_size):
        data = module()
        data.trainer = trainer(world_size, rank)
        for batch in data.val_dataloader():
            texts[batch.source].append(data.tokenizer.decode(batch.targets[batch.targets != IGNORE]))
    assert sorted("".join(texts["web"])) == sorted("ABCDEFGHIJ" * 6)[1:]
    assert sorted("".join(texts["books"])) == sorted("0123456789" * 12)[1:]


def test_a_limited_validation_reads_a_part_of_each_source(module):
    data = module(max_val_tokens=60)  # of 180
    data.setup("fit")
    counts = {"web": 0, "books": 0}
    for batch in data.val_dataloader():
        counts[batch.source] += batch.num_targets
    assert counts == {"web": pytest.approx(20, abs=7), "books": pytest.approx(40, abs=7)}


def test_the_vocabulary_is_of_all_sources_and_the_fingerprint_of_each(module, tmp_path):
    data = module()
    assert data.vocab_size == 20
    before, fingerprints = data.fingerprint, data.fingerprints
    assert list(fingerprints) == ["books", "web"]
    (tmp_path / "web.txt").write_text("ABCDEFGHIJ" * 59)
    other = module(weights={"web": 2, "books": 3})
    assert other.fingerprint != before and other.fingerprints["books"] == fingerprints["books"]
    assert other.fingerprints["web"] != fingerprints["web"]


def test_the_order_of_the_sources_in_the_config_does_not_matter(module):
    data, texts = module(), module().content.contents
    other = module(corpus={name: texts[name].source for name in ("books", "web")})
    assert data.fingerprint == other.fingerprint
    assert torch.equal(data.content.training(1, 1, 0)[5].inputs, other.content.training(1, 1, 0)[5].inputs)


def test_short_documents_begin_their_windows_in_a_mixture_too(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(f"{number:03}" for number in range(200)))
    (tmp_path / "a.txt").write_text("abcdefgh" * 200)
    corpus = {"numbers": f"lines:{tmp_path / 't.txt'}", "letters": str(tmp_path / "a.txt")}
    data = TextDataModule(corpus, max_seq_len=4, batch_size=8, cache_dir=str(tmp_path / "cache"))
    data.trainer = trainer()
    data.setup("fit")
    end = data.tokenizer.end_of_text
    for batch in data.train_dataloader():
        for inputs in batch.inputs.tolist():
            text = data.tokenizer.decode(inputs)
            assert text.isalpha() or (inputs[0] == end and text[-3:].isdigit())


def test_a_mixture_has_a_floor_only_if_all_sources_have_one(tmp_path):
    (tmp_path / "a.txt").write_text("Once upon a time. " * 200)
    options = dict(max_seq_len=16, cache_dir=str(tmp_path / "cache"))
    one, two = (TextDataModule(f"stories:{count}", **options) for count in (60, 90))
    both = TextDataModule({"a": "stories:60", "b": "stories:90"}, **options)
    floors = [data.floors["val"] for data in (one, two)]
    nats, tokens = (
        sum(each) for each in zip(*[(-floor.log_probs.sum(), floor.num_tokens) for floor in floors], strict=True)
    )
    assert both.floors["val"].nats_per_token == pytest.approx(nats / tokens)
    errors = [floor.standard_error * floor.num_tokens for floor in floors]
    assert both.floors["val"].standard_error == pytest.approx(math.hypot(*errors) / tokens)
    assert TextDataModule({"a": "stories:60", "b": str(tmp_path / "a.txt")}, **options).floors == {}


def test_the_example_prompt_is_of_the_largest_source(module):
    assert module(weights={"web": 9, "books": 1}).example_prompt()[:10].isalpha()
    assert module().example_prompt()[:10].isdigit()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"web": 0, "books": 1}}, "data.weights.web: is 0; leave the source out of data.corpus"),
        ({"weights": {"web": -1, "books": 1}}, "data.weights.web must be positive, got -1"),
        ({"weights": {"web": math.nan, "books": 1}}, "data.weights.web must be positive, got nan"),
        ({"weights": {"web": math.inf, "books": 1}}, "data.weights.web must be positive, got inf"),
        ({"weights": {"wep": 1, "books": 1}}, "data.weights.wep: data.corpus has no such source, did you mean 'web'?"),
        ({"weights": {"web": 1}}, "data.weights: has none for books; give one for every source"),
        ({"corpus": {}}, "data.corpus: has no sources; give a corpus, or names and corpora"),
        ({"corpus": {"a/b": "x.txt"}}, "data.corpus: 'a/b': the name of a source has letters, digits and _ . - only"),
        ({"corpus": {"web": ""}}, "data.corpus.web: must be a corpus, such as my.txt, got ''"),
        (
            {"corpus": "x.txt", "weights": {"web": 1}},
            "data.weights: are for a mixture, not for x.txt; leave them out (null)",
        ),
        ({"train_tokens": 9}, "data.train_tokens: is for one corpus; of a mixture, make the sources shorter"),
    ],
)
def test_invalid_mixtures_are_refused(module, options, message):
    with pytest.raises(ConfigError) as error:
        module(**options)
    assert str(error.value) == message


def test_a_batch_that_would_repeat_sequences_of_a_source_is_refused(module):
    with pytest.raises(
        ConfigError, match=r"^data.batch_size: 120 takes 108 sequences of 7 tokens of web, which has 78; "
    ):
        module(batch_size=120, weights={"web": 9, "books": 1}).setup("fit")


def test_a_missing_source_and_a_short_one_are_named(module, tmp_path):
    with pytest.raises(MissingInputError, match=r"nothing\.txt: no such corpus or file"):
        module(corpus={"web": str(tmp_path / "nothing.txt")}).setup("fit")
    (tmp_path / "short.txt").write_text("A few.")
    with pytest.raises(DataError, match=r"short\.txt: train has 6 tokens, max_seq_len 7 needs at least 8"):
        module(corpus={"web": str(tmp_path / "web.txt"), "short": str(tmp_path / "short.txt")}).setup("fit")
