"""BERTScore against a slow twin over a tiny random encoder, and the law of neighbours."""

from __future__ import annotations

import math

import pytest
import torch

from heatproof.errors import Refused
from heatproof.metrics.bert_score import Encoder, Rarity, bert_score, greedy

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"a the red dog cat sat ##s run ##ning on mat".split(),
]
SAID = ["a red dog", "the cats sat on a mat", "running", "a zebra"]
REFERENCES = [["the red dog", "a dog"], ["a cat on the mat"], ["a dog runs", "the dog", "running"], ["a dog"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import transformers as t

    top = tmp_path_factory.mktemp("bert")
    (top / "vocab.txt").write_text("\n".join(VOCABULARY))
    t.BertTokenizer(str(top / "vocab.txt")).save_pretrained(top)
    config = t.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=12,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        t.BertModel(config).save_pretrained(top)
    return top


@pytest.fixture(scope="module")
def encoder(folder):
    return Encoder(str(folder), layer=1)


def twin(encoder, said, some, *, idf=None, mean=False, partners=False):
    """Token by token, in lists, over the net's own states."""
    tokenizer, net = encoder._parts

    def read(text):
        ids = tokenizer(text)["input_ids"]
        states = net(torch.tensor([ids]), output_hidden_states=True).hidden_states[encoder.layer][0].tolist()
        return [
            (i, v, i in tokenizer.all_special_ids and tokenizer.decode([i]) != "[UNK]")
            for i, v in zip(ids, states, strict=True)
        ]

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(
            sum(x * x for x in a) * sum(y * y for y in b)
        )

    def one(mine, theirs):
        top = under = 0.0
        for i, v, special in mine:
            if not special:
                weight = 1.0 if idf is None else idf(i)
                top += weight * max(cosine(v, w) for _, w, s in theirs if partners or not s)
                under += weight
        return top / under

    triples = []
    for other in some:
        p, r = one(read(said), read(other)), one(read(other), read(said))
        triples.append((p, r, 2 * p * r / (p + r)))
    if mean:
        return [sum(column) / len(triples) for column in zip(*triples, strict=True)]
    return list(max(triples, key=lambda triple: triple[2]))


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("partners", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
def test_against_the_twin(encoder, mean, partners, weighed):
    corpus = ["a dog", "the dog", "a cat sat"]
    rarity = Rarity.of(corpus, encoder) if weighed else None

    def idf(token):
        tokenizer = encoder._parts[0]
        having = sum(token in tokenizer(text)["input_ids"] for text in corpus)
        return math.log(4 / (having + 1))

    found = bert_score(SAID, REFERENCES, encoder, rarity, mean_references=mean, special_partners=partners)
    for said, some, score in zip(SAID, REFERENCES, found, strict=True):
        wanted = twin(encoder, said, some, idf=idf if weighed else None, mean=mean, partners=partners)
        assert list(score) == pytest.approx(wanted, abs=1e-6)


def test_no_score_depends_on_its_neighbours(encoder):
    """Law 1, with ==."""
    whole = bert_score(SAID, REFERENCES, encoder)
    for size in (1, 3):
        parts = [bert_score(SAID[k : k + size], REFERENCES[k : k + size], encoder) for k in range(0, 4, size)]
        assert [score for part in parts for score in part] == whole
    assert bert_score(SAID[::-1], REFERENCES[::-1], encoder)[::-1] == whole
    assert bert_score(SAID, [some[::-1] for some in REFERENCES], encoder) == whole


def test_the_layer_counts_and_a_text_is_its_own_best(folder, encoder):
    assert bert_score(["a red dog"], [["a dog", "a red dog"]], encoder)[0] == pytest.approx((1, 1, 1))
    told = {layer: bert_score(SAID, REFERENCES, Encoder(str(folder), layer=layer)) for layer in (0, 1, 2, -1)}
    assert told[2] == told[-1]
    assert len({str(scores) for scores in told.values()}) == 3


def test_what_has_no_value(encoder):
    found = bert_score(["", "a dog", "a dog"], [["a dog"], [], ["a dog", ""]], encoder)
    assert all(math.isnan(value) for score in found for value in score)
    weightless = Rarity.of(["a dog"], encoder)  # every text of the corpus has both words
    assert math.isnan(bert_score(["a dog"], [["a dog"]], encoder, weightless)[0].f)
    opposed = greedy(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]]))
    assert opposed[:2] == (-1.0, -1.0)
    assert math.isnan(opposed.f)
    with pytest.raises(ValueError, match="1 captions, but references of 2 images"):
        bert_score(["a"], [["a"], ["a"]], encoder)


def test_refusals_say_what_is_wrong(folder, tmp_path, encoder):
    with pytest.raises(Refused, match="layer: found 3, accepted are 0 to 2, or -1 for the last"):
        Encoder(str(folder), layer=3).read("a dog")
    with pytest.raises(Refused, match=r"BERTScore: encoder .* cannot be loaded"):
        Encoder(str(tmp_path / "none")).read("a dog")
    with pytest.raises(Refused, match=r"has 17 tokens, and .* reads 12"):
        encoder.read("dog " * 15)
