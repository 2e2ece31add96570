"""Generated scenes: pictures whose every pixel, name and sentence is known by construction."""

from heatproof.scenery.canvas import BACKGROUNDS, COLOURS, SIDE, TEXTURES
from heatproof.scenery.compose import HOME, PARTNERS, Knobs, compose
from heatproof.scenery.samples import SPLITS, sample
from heatproof.scenery.scene import Scene, Thing
from heatproof.scenery.shapes import KINDS

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "HOME",
    "KINDS",
    "PARTNERS",
    "SIDE",
    "SPLITS",
    "TEXTURES",
    "Knobs",
    "Scene",
    "Thing",
    "compose",
    "sample",
]
