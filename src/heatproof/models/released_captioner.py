"""The released captioners of Sun et al. 2022: a PyTorch checkpoint of their code, recognised by names and shapes alone.

Checkpoints are those of ``SunJiamei/LRP-imagecaptioning-pytorch``; the vocabulary is their ``wordmap_DATASET.json``::

    { use = "released_captioner", name = "checkpoint_coco2017.pth", wordmap = "wordmap_coco2017.json" }
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from heatproof.contract import Refused, Sample
from heatproof.geometry import Frame
from heatproof.models.captioner import Captioner
from heatproof.models.coco_synsets import LEFT_OUT, NEAREST, SYNSETS
from heatproof.models.own_captioner import build
from heatproof.models.regions import Regions
from heatproof.models.released_weights import fill, read, recognise
from heatproof.models.words import WordList
from heatproof.models.writing import Writing

TOLD = {
    "adaptive": "adaptive attention over two LSTMs (their gridTD)",
    "single": "adaptive attention over one LSTM (their adaptiveattention)",
    "multi_head": "multi-head attention over one LSTM (their aoa)",
}
STEPS = {"adaptive": 20, "single": 20, "multi_head": 30}  # that their searches take at most
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ReleasedCaptioner(Writing):
    """``name`` is the file, ``wordmap`` the JSON of its words' ids; how it writes is told in ``models/writing.py``.

    ``heads`` cannot be seen in the weights. ``order``, of multi-head attention: "head" for code of April 2021 and later;
    before, the attention took keys for values and values for keys, and weights trained so need "2020". No shape tells:
    try both and keep the one with the higher CIDEr (or see ``orders``). ``length``: the longest caption with <start>; 0 for
    the release's 20 tokens, 30 with multi-head attention. ``objects`` are the names that count as objects (COCO's 80).
    ``regions`` has the features that a bottom-up net reads (``models/regions.py``); the release masks no padding, and
    weights trained so are run so unless ``masked``.
    """

    name: str
    wordmap: str
    order: Literal["head", "2020"] = "head"
    heads: int = 8
    length: int = 0
    objects: tuple[str, ...] = (*SYNSETS, *NEAREST, *LEFT_OUT)
    regions: str = ""
    masked: bool = False
    rows: int = 8

    def load(self, name: str, device: str = "cpu") -> Captioner:
        """The captioner; raises Refused, naming the file, where it is missing or holds another net."""
        if self.order not in ("head", "2020"):
            raise Refused(f"model {name}: order: found {self.order!r}, accepted are 'head', '2020'")
        weights, where = read(Path(self.name), name), f"model {name}: {self.name}"
        config = recognise(weights, where)
        words = self._words(config["decoder"]["vocabulary"], name)
        over_regions = config["encoder"]["kind"] == "regions"
        if config["architecture"] == "multi_head":
            config["decoder"]["heads"] = self.heads
        elif self.order != "head":
            raise Refused(
                f"{where}: order = {self.order!r} is for multi-head attention, this is {TOLD[config['architecture']]}"
            )
        if over_regions:
            config["decoder"]["masked"] = self.masked
        frame, seen = self._regions(config) if over_regions else _frame(config, where)
        net = build(config, where)
        fill(net, weights, where, exchanged=self.order == "2020")
        return Captioner(
            *(name, net, frame),
            card={
                "source": Path(self.name).name,
                "data": "see the authors' release",
                "licence": "none is given with the authors' release",
                "found": f"{self._found(config)}; {seen}.",
            },
            rows=self.rows,
            device=device,
            words=words,
            objects=self.objects,
            length=self.length or STEPS[config["architecture"]],
            **self.writing(name, net),
        )

    def orders(self, samples: Sequence[Sample]) -> dict[str, float]:
        """For each key/value order, the mean log-probability of the object words in the samples' first captions.

        A net whose keys and values are exchanged attends to nothing in particular: the higher one is its own order.
        """
        found = {}
        for order in ("head", "2020"):
            model = replace(self, order=order).load(order)
            cases = [case for each in model.ask(samples, "caption 0") for case in each]
            if not cases:
                raise Refused(f"{self.name}: no first caption of the samples names any of its objects")
            found[order] = float(model.clean(cases).mean())
        return found

    def _words(self, count: int, name: str) -> WordList:
        try:
            ids = json.loads(Path(self.wordmap).read_text(encoding="utf-8"))
            words = WordList(ids)
        except (OSError, ValueError, TypeError) as error:  # no file, no JSON, no such words, or no table
            raise Refused(f"model {name}: wordmap {self.wordmap}: {error}") from error
        if set(words.words) != set(range(count)):
            raise Refused(
                f"model {name}: wordmap {self.wordmap} has {len(ids)} words, {self.name} has {count}; "
                "take the wordmap of the data set that it was trained on"
            )
        return words

    def _regions(self, config: Mapping[str, Any]) -> tuple[Frame, str]:
        sizes = config["decoder"]
        frame = Regions(count=sizes.get("cells", 36), width=sizes["channels"], folder=self.regions)
        padding = "left out" if self.masked else "seen as in the release"
        return frame, f"over {frame.count} regions of {frame.width} features, padding {padding}"

    def _found(self, config: Mapping[str, Any]) -> str:
        sizes = config["decoder"]
        text = f"{TOLD[config['architecture']]}: {sizes['vocabulary']} words, embed {sizes['embed']}, hidden {sizes['hidden']}"
        if config["architecture"] != "multi_head":
            return f"{text}, {sizes['cells']} cells"
        taken = "decoder_v_proj" if self.order == "2020" else "decoder_k_proj"
        return (
            f"{text}, {self.heads} heads (told, not seen), keys by {taken} (order {self.order!r}; the shapes fit both 'head' "
            "and '2020': try both and compare CIDEr)"
        )


def _frame(config: Mapping[str, Any], where: str) -> tuple[Frame, str]:
    """Square images of the size that the attention's cells tell, 14 a side where it does not; squashed, no crop."""
    encoder, cells = config["encoder"], config["decoder"].get("cells", 196)
    side = math.isqrt(cells)
    if side**2 != cells:
        raise Refused(f"{where}: AdaAttention.W_v_proj has {cells} cells, which is no square of them")
    size = side * 2 ** (len(encoder["channels"]) - 1)
    channels, many = (", ".join(map(str, encoder[key])) for key in ("channels", "convolutions"))
    return Frame(
        size, mean=MEAN, std=STD
    ), f"over a VGG with {many} convolutions of {channels} channels at {size} pixels"
