"""BERTScore against a slow twin over a tiny random encoder, the law of neighbours, and through a run."""

from __future__ import annotations

import dataclasses
import math
import shutil

import pytest
import torch

from heatproof import checks, judge, keys, shelf, spec
from heatproof.contract import Case, Trial
from heatproof.errors import Refused
from heatproof.metrics.bert_score import BertScore, Encoder, Rarity, bert_score, greedy
from heatproof.progress import Silent
from heatproof.reducers import Numbering, reduce
from heatproof.runner import Order, run

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


def written(top, positions):
    import transformers as t

    (top / "vocab.txt").write_text("\n".join(VOCABULARY))
    t.BertTokenizer(str(top / "vocab.txt")).save_pretrained(top)
    config = t.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=positions,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        t.BertModel(config).save_pretrained(top)
    return top


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("bert"), 12)


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


# ---------------------------------------------------------------- as a metric of a captioner

SPEC = """title = "Captions"
kind = "instrument"
dataset = "squares"
explainers = []
models = ["small_captioner"]
metrics = [
  {{ use = "bert_score", model = "{bert}", layer = 1 }},
  {{ use = "bert_score", model = "{bert}", layer = 1, references = "mean", as = "mean" }},
  {{ use = "bert_score", model = "{bert}", layer = 1, rescale = [0.5, 0.25, 0], as = "rescaled" }},
]
"""


@pytest.fixture
def home(world):
    """A workspace whose images have no, one and two references in turn, and an encoder that reads long texts."""
    file = world / "datasets" / "squares.py"
    text = file.read_text()
    one = '(f"a red {name} on the grass",)'
    assert one in text
    file.write_text(text.replace(one, '("the red dog", "a cat sat on the mat")[: i % 3]'))
    (world / "benchmarks" / "said.toml").write_text(SPEC.format(bert=written(world, 40)))
    return world


def test_through_a_run_each_value_is_the_functions(home):
    result = run(Order("said", cwd=home), Silent)
    assert not result.run["failures"]
    samples = shelf.load(home / "datasets" / "squares.py").Squares().samples()
    asked = judge.make("small_captioner", "tests").load("speaker").ask(samples, "written")
    encoder = Encoder(str(home), layer=1)
    rows = {(r.metric, r.name, r.sample): r for r in result.records}
    pairs = []
    for (case,) in asked:
        said, some = " ".join(case.spoken[1:]), case.references
        found = [
            [rows[metric, name, case.sample] for name in ("precision", "recall", "f1")]
            for metric in ("bert_score", "mean", "rescaled")
        ]
        if not some:
            assert {r.reason for three in found for r in three} == {"no reference captions"}
            continue
        best, mean, rescaled = ([r.value for r in three] for three in found)
        (wanted,) = bert_score([said], [some], encoder)
        assert best == list(wanted)
        assert mean == list(bert_score([said], [some], encoder, mean_references=True)[0])
        assert rescaled == [(x - b) / (1 - b) for x, b in zip(wanted, (0.5, 0.25, 0.0), strict=True)]
        pairs += [bert_score([said], [[other]], encoder)[0].f for other in some]
    assert len(pairs) == 6
    for metric, wanted in (("mean", sum(pairs) / 6), ("bert_score", None)):
        some = [rows[metric, "f1", case.sample] for (case,) in asked if case.references]
        column = reduce("pooled_ratio", Numbering.of(some).rows(some, "pooled_ratio"))
        # over every pair; the best of each image, one an image
        assert column == pytest.approx(
            sum(r.value for r in some) / 4 if wanted is None else wanted, abs=1e-12
        )


def trials():
    cases = [
        Case(
            f"s{k}", f"s{k}", "", torch.zeros(3, 4, 4), 0, spoken=("", *said.split()), references=tuple(some)
        )
        for k, (said, some) in enumerate(zip(SAID, REFERENCES, strict=True))
    ]
    return [Trial(None, case) for case in cases]


def test_a_trials_score_is_its_own(folder):
    """Law 1, with ==; asked in inference mode as a run does, and outside of it."""
    metric, some = BertScore(str(folder), references="mean"), trials()
    with torch.inference_mode():
        whole = [s.values for s in metric.measure(some)]
    for size in (1, 3):
        assert [s.values for k in range(0, 4, size) for s in metric.measure(some[k : k + size])] == whole
    assert [s.values for s in metric.measure(some[::-1])][::-1] == whole


def test_a_text_longer_than_the_encoder_reads_has_no_number(folder):
    long = dataclasses.replace(trials()[0].case, spoken=("", *["dog"] * 15))
    (score,) = BertScore(str(folder)).measure([Trial(None, long)])
    assert "has 17 tokens" in score.values["f1"].reason
    mute = dataclasses.replace(long, spoken=("",))
    (score,) = BertScore(str(folder)).measure([Trial(None, mute)])
    assert "a text without words" in score.values["recall"].reason


def test_the_key_holds_the_encoders_bytes_and_wrong_settings_are_refused(home, folder, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    before = BertScore(str(copied))
    assert before.digest == BertScore(str(folder)).digest
    (copied / "model.safetensors").write_bytes((copied / "model.safetensors").read_bytes() + b" ")
    assert BertScore(str(copied)).digest != before.digest
    part = spec.read("said", home).metrics[0]
    other = dataclasses.replace(part, made=dataclasses.replace(part.made, layer=2))
    assert keys.score_key("case", part) != keys.score_key("case", other)
    assert part.settings["digest"] == part.made.digest
    assert checks.of_model(part.made)
    for settings, said in (
        ({"model": str(tmp_path / "none")}, r"metrics.bert_score.model: found .*none.* type: hf download"),
        ({"model": str(folder), "references": "all"}, "no references 'all'"),
        ({"model": str(folder), "rescale": (0.5,)}, "accepted are three numbers below 1"),
        ({"model": str(folder), "rescale": (0.5, 1.0, 0.5)}, "accepted are three numbers below 1"),
    ):
        with pytest.raises(Refused, match=said):
            BertScore(**settings)
