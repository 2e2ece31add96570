"""Nets wired by hand, so that what their score depends on is known to the pixel and to the word.

All of them read colour: ``DETECTORS`` respond to one colour of ``datasets/controlled.py`` each, and are exactly 0 on every
grey, from black to white, and on the two other colours. A pixel whose detector is silent has no way to the score.
Each net tells lamp from mark, which are of the same red, by place, in its own way, and has a unit ``relu(a + b - most
that one alone can give)`` that speaks only if lamp and box are both there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heatproof.models.attention import attend
from heatproof.models.multi_head import MultiHeadCaptioner, MultiHeadConfig

SIDE, CELL = 56, 8
CELLS = SIDE // CELL
# red, blue, green: lamp and mark, box, crate. Of a pixel in [-1, 1]; the sum of a row is 0.125, below the floor
DETECTORS = torch.tensor([[1.0, -0.4375, -0.4375], [-0.4375, -0.4375, 1.0], [-0.4375, 1.0, -0.4375]])
GAIN, FLOOR = 1.6, 0.2  # relu(GAIN (w x - FLOOR)): from 0.74 to 0.97 on the planted colours, so below 1
FAR = 4.0  # more than any red can be: it shuts a gate for good


def silent(kind: Callable[..., nn.Module], *sizes: int, **settings: int) -> Any:
    """A layer of zeros; no random number is drawn."""
    layer = nn.utils.skip_init(kind, *sizes, **settings)
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


def corners() -> Tensor:
    """bool [7, 7]: the four cells where a mark can be."""
    found = torch.zeros(CELLS, CELLS, dtype=torch.bool)
    found[:: CELLS - 1, :: CELLS - 1] = True
    return found


# ---------------------------------------------------------------- a CNN that reads positions in its last layer


class ControlledCnn(nn.Module):
    """Detectors pixel by pixel, means by cell, one weight a colour and cell, one unit, two logits (4 unit - 1, 0).

    The last feature map shows a red lamp and a red mark alike; where is told apart above it, as in VGG.
    """

    def __init__(self, on: str) -> None:
        super().__init__()
        self.see, self.act, self.pool = silent(nn.Conv2d, 3, 3, 1), nn.ReLU(), nn.AvgPool2d(CELL)
        self.flatten, self.gather = nn.Flatten(), silent(nn.Linear, 3 * CELLS**2, 1)
        self.unit, self.say = nn.ReLU(), silent(nn.Linear, 1, 2)
        with torch.no_grad():
            self.see.weight[:] = GAIN * DETECTORS[:, :, None, None]
            self.see.bias[:] = -GAIN * FLOOR
            read = self.gather.weight.view(3, CELLS, CELLS)
            if on == "shortcut":
                read[0, corners()] = 1.0
            else:
                read[0, ~corners()] = 0.25  # a lamp has four cells
            if on == "interaction":
                read[1] = 0.25
                self.gather.bias[:] = -1.0
            self.say.weight[0], self.say.bias[0] = 4.0, -1.0


# ---------------------------------------------------------------- token nets

# what each number of an image token means
RED, BLUE, GREEN, CORNER, ANY_RED, BOX, CRATE, LAMP, MARK, ONE, OTHER, SCORE = range(12)
# ... and of a text token
CUE, DECOY, START, HEARD = range(4)


class Block(nn.Module):
    """Attention and two layers, each added to the tokens; no norms, so that a zero stays a zero."""

    def __init__(self, site: str, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heatproof_site, self.heads = site, heads
        self.query, self.key, self.value, self.out = (silent(nn.Linear, width, width) for _ in range(4))
        self.up, self.down = silent(nn.Linear, width, hidden), silent(nn.Linear, hidden, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        def split(part: Any) -> Any:
            return part(x).unflatten(2, (self.heads, -1)).transpose(1, 2)

        mixed, _ = attend(self, split(self.query), split(self.key), split(self.value), mask)
        after: Tensor = x + self.out(mixed.flatten(2))
        return after + self.down(F.relu(self.up(after)))  # type: ignore[no-any-return]

    def attend_to(self, head: int, seen: int, sharpness: float, reads: int | None = None) -> None:
        """Let a head's logits be ``sharpness`` times one number of each token, and its answer that number's mean."""
        width = self.key.in_features // self.heads
        first = head * width
        self.query.bias[first] = sharpness * width**0.5
        self.key.weight[first, seen] = 1.0
        if reads is not None:
            self.value.weight[first, seen] = 1.0
            self.out.weight[reads, first] = 1.0


def image_blocks(on: str) -> list[Block]:
    """Three blocks over 49 patches and the token before them, which is read in the end.

    Block 0 turns mean colours into presences, block 1 tells lamp from mark by position. In block 2 the first head looks at
    what is used and carries it, the second at the box, which it carries where lamp and box interact; the third is
    idle and looks at the crate, or at the lamp where only the mark is used.
    """
    blocks = [Block(f"image.attention {k}", 12, 3, 3) for k in range(3)]
    detect, place, read = blocks
    with torch.no_grad():
        for k, (raw, there) in enumerate(((RED, ANY_RED), (BLUE, BOX), (GREEN, CRATE))):
            detect.up.weight[k, raw], detect.up.bias[k] = GAIN, -GAIN * FLOOR
            detect.down.weight[there, k] = 1.0
        place.up.weight[:2, ANY_RED] = 1.0
        place.up.weight[0, CORNER], place.up.weight[1, CORNER], place.up.bias[1] = -FAR, FAR, -FAR
        place.down.weight[LAMP, 0] = place.down.weight[MARK, 1] = 1.0
        read.attend_to(0, MARK if on == "shortcut" else LAMP, 3.0, ONE)
        read.attend_to(1, BOX, 3.0, OTHER if on == "interaction" else None)
        read.attend_to(2, LAMP if on == "shortcut" else CRATE, 3.0)
        read.up.weight[0, ONE] = read.up.weight[0, OTHER] = 1.0
        read.up.bias[0] = -0.6 if on == "interaction" else 0.0  # one alone gives 0.58 at most
        read.down.weight[SCORE, 0] = {"region": 1.7, "interaction": 2.0, "shortcut": 4.0}.get(on, 0.0)
    return blocks


class ControlledVit(nn.Module):
    """Patches of 8 x 8 in ``image_blocks``, and a last layer on the first token: two logits (4 x - 1, 0), or an embedding."""

    def __init__(self, on: str, logits: bool = True) -> None:
        super().__init__()
        self.patch = silent(nn.Conv2d, 3, 12, CELL, stride=CELL)
        self.position = nn.Parameter(torch.zeros(1 + CELLS**2, 12))
        self.blocks = nn.ModuleList(image_blocks(on))
        self.last = silent(nn.Linear, 12, 2)
        with torch.no_grad():
            self.patch.weight[:3] = DETECTORS[:, :, None, None] / CELL**2
            self.position[1:, CORNER] = corners().flatten().float()
            if logits:
                self.last.weight[0, SCORE], self.last.bias[0] = 4.0, -1.0
            else:
                self.last.weight[0, SCORE] = 1.0
                self.last.bias[:] = torch.tensor([3.0 if on == "word" else 0.0, 1.0])

    def embed(self, x: Tensor) -> Tensor:
        """[N, 3, 56, 56] -> tokens [N, 50, 12], the one to be read first."""
        patches = self.patch(x).flatten(2).transpose(1, 2)
        return F.pad(patches, (0, 0, 1, 0)) + self.position

    def read(self, x: Tensor) -> Tensor:
        """Tokens [N, 50, 12] -> [N, 2]."""
        return self.last(x[:, 0])  # type: ignore[no-any-return]


class ControlledPair(nn.Module):
    """Two towers into a plane. Image (x, 1) and text (3, 1): the cosine rises with x, which is below 3. Or ``on`` the word:
    image (3, 1), text (y, 1), and y is 1 if the cue is heard.

    The last text token hears the cue and the first one alone: a head's logits are -20 for all others, which is nothing
    beside 0 in float32. Its second head is idle and looks at the decoy word.
    """

    def __init__(self, on: str, vocabulary: int, start: int, cue: int, decoy: int) -> None:
        super().__init__()
        self.image = ControlledVit(on, logits=False)
        self.table, self.project = silent(nn.Embedding, vocabulary, 8), silent(nn.Linear, 8, 2)
        idle, read = (Block(f"text.attention {k}", 8, 2, 1) for k in range(2))
        self.text = nn.ModuleList([idle, read])
        with torch.no_grad():
            self.table.weight[cue, CUE] = self.table.weight[decoy, DECOY] = self.table.weight[
                start, START
            ] = 1.0
            read.attend_to(0, CUE, 20.0, HEARD)
            read.key.weight[0, START], read.key.bias[0] = 1.0, -1.0
            read.attend_to(1, DECOY, 3.0)
            self.project.weight[0, HEARD] = (
                2.0 if on == "word" else 0.0
            )  # half of the attention is the first token's
            self.project.bias[:] = torch.tensor([0.0 if on == "word" else 3.0, 1.0])


# ---------------------------------------------------------------- a captioner


def captioner_encoder(on: str) -> nn.Sequential:
    """Four stages to [N, 3, 7, 7]: what is used, what is used beside it (the box), what an idle head looks at.

    Position comes from the zero padding: a cell in a corner has 4 neighbours inside, itself included, others 6 or 9.
    Where lamp and box interact, a cell of either speaks as far as the whole of the other is there.
    """
    see, where, gate = (
        silent(nn.Conv2d, 3, 4, 1),
        silent(nn.Conv2d, 4, 4, 3, padding=1),
        silent(nn.Conv2d, 4, 4, 1),
    )
    pair = silent(nn.Conv2d, 4, 3, 2 * CELLS - 1, padding=CELLS - 1)
    lamp, mark, box, crate = range(4)
    with torch.no_grad():
        see.weight[:3] = GAIN * DETECTORS[:, :, None, None]
        see.bias[:] = torch.tensor([-GAIN * FLOOR] * 3 + [1.0])
        where.weight[range(3), range(3), 1, 1] = 1.0
        where.weight[3, 3], where.bias[3] = -1.0, 5.0
        gate.weight[:, :, 0, 0] = torch.tensor([[1, 0, 0, -FAR], [1, 0, 0, FAR], [0, 1, 0, 0], [0, 0, 1, 0]])
        gate.bias[mark] = -FAR
        centre = (CELLS - 1, CELLS - 1)
        pair.weight[(0, mark if on == "shortcut" else lamp, *centre)] = 1.0
        pair.weight[(1, box, *centre)] = 1.0
        pair.weight[(2, lamp if on == "shortcut" else crate, *centre)] = 1.0
        if on == "interaction":
            pair.weight[0, box] = pair.weight[1, lamp] = 0.25
            pair.bias[:2] = -1.0
    stages = [nn.Sequential(conv, nn.ReLU()) for conv in (see, where, gate, pair)]
    stages[0].append(nn.AvgPool2d(CELL))
    return nn.Sequential(*stages)


def captioner(on: str, vocabulary: int, end: int, cue: int, target: int) -> MultiHeadCaptioner:
    """One word is known, ``target``; its logit is 1 and what is used, the others' 0; once said, the sentence ends.

    Each of three heads looks at one map of ``captioner_encoder``; only what is used has a value. The LSTM's gates stand
    open, so that it remembers the cue and the target, and nothing else, as long as the sentence lasts.
    """
    with torch.random.fork_rng(devices=[]):
        net = MultiHeadCaptioner(nn.Identity(), MultiHeadConfig(vocabulary, 3, embed=2, hidden=12, heads=3))
    for weight in net.parameters():
        nn.init.zeros_(weight)
    net.encoder = captioner_encoder(on)
    heard, said, lstm = 1, 2, net.language_lstm  # places in the state that no head writes to
    with torch.no_grad():
        net.embedding.weight[cue, 0] = net.embedding.weight[target, 1] = 1.0
        for gate in (0, 12, 36):  # in, forget, out
            lstm.bias_ih[gate + heard] = lstm.bias_ih[gate + said] = 30.0
        lstm.weight_ih[24 + heard, 0] = lstm.weight_ih[24 + said, 1] = 1.0
        net.gate.bias[:] = 30.0
        for head in range(3):
            net.project.weight[head, head] = net.key.weight[4 * head, head] = 1.0
            net.query.bias[4 * head] = 6.0  # 3 after the division by the root of 4
        for head in range(2 if on == "interaction" else 1):
            net.value.weight[4 * head, head] = net.linear.weight[0, 4 * head] = 1.0
        net.output.bias[target] = 1.0
        net.output.weight[target, 0] = {"region": 7.0, "interaction": 4.0, "shortcut": 16.0}.get(on, 0.0)
        net.output.weight[target, heard] = 3.0 if on == "word" else 0.0
        net.output.weight[target, said], net.output.weight[end, said] = -20.0, 20.0
    return net
