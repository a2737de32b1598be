"""Post-processors put the ids of `tokenizers` around a text, and are written as they were read."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from tinylm.errors import DataError
from tinylm.tokenizer import load_tokenizer
from tinylm.tokenizer.base import Marks, Tokenizer
from tinylm.tokenizer.formats.folder import read_folder
from tinylm.tokenizer.formats.huggingface import read_tokenizer_json, write_tokenizer_json

NAMED = [("<s>", 0), ("</s>", 1)]
KINDS = {  # post-processor, begin, end
    "begin": (processors.TemplateProcessing("<s> $A", "<s> $A $B", NAMED), 0, None),
    "end": (processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", NAMED), None, 1),
    "both": (processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", NAMED), 0, 1),
    "BERT's": (processors.BertProcessing(("</s>", 1), ("<s>", 0)), 0, 1),
    "RoBERTa's": (processors.RobertaProcessing(("</s>", 1), ("<s>", 0)), 0, 1),
}


@pytest.fixture(scope="module")
def other():
    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names, letters = [name for name, _ in NAMED], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=258, special_tokens=names, initial_alphabet=letters, show_progress=False)
    found.train_from_iterator(["a"], trainer)
    return found


@pytest.mark.parametrize(("processor", "begin", "end"), KINDS.values(), ids=KINDS)
def test_marks_equal_the_ids_that_tokenizers_puts_around_a_text(processor, begin, end, other, tmp_path):
    other.post_processor = processor
    other.save(str(tmp_path / "tokenizer.json"))
    ours = read_tokenizer_json(tmp_path / "tokenizer.json")
    assert ours.adds_begin == (begin is not None)
    before, behind = [] if begin is None else [begin], [] if end is None else [end]
    assert [*before, *ours.encode("a cat"), *behind] == other.encode("a cat").ids
    if end is not None:
        assert ours.marks == Marks(begin, end, (end,))
        assert load_tokenizer(tmp_path / "tokenizer.json").marks == Marks(end, end, (end,))  # as in training
    assert Tokenizer.from_dict(ours.to_dict()) == ours
    for tokenizer in (ours, read_folder(tmp_path)):
        assert (tokenizer.marks.begin, tokenizer.marks.end or end) == (begin, tokenizer.marks.end)
        write_tokenizer_json(tokenizer, tmp_path / "again.json", overwrite=True)
        again = json.loads((tmp_path / "again.json").read_text())["post_processor"]
        template = json.loads(other.to_str())["post_processor"]
        assert again == template or end is None
        assert tokenizers.Tokenizer.from_file(str(tmp_path / "again.json")).encode("a").ids == other.encode("a").ids


def test_templates_of_more_than_one_token_on_a_side_are_refused(other, tmp_path):
    for template in ("<s> <s> $A", "$A </s> </s>", "<s>", "$A $A"):
        other.post_processor = processors.TemplateProcessing(template, special_tokens=NAMED)
        other.save(str(tmp_path / "t.json"))
        with pytest.raises(DataError, match=r"t\.json: post_processor is .*; tinylm does not support this"):
            read_tokenizer_json(tmp_path / "t.json")
