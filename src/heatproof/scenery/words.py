"""What can be said of a scene: five captions and three reasons, in few and regular words."""

from __future__ import annotations

from typing import Protocol

PLACES = {
    "sky": "in the sky",
    "meadow": "on a meadow",
    "beach": "on a beach",
    "floor": "on a tiled floor",
    "wall": "by a striped wall",
    "fog": "in the fog",
}
MARKS = {
    "ball": "it is round and shiny",
    "star": "it has five points",
    "cup": "it has a handle and a rim",
    "house": "it has a roof and a door",
    "tree": "it has a crown and a trunk",
    "fish": "it has an eye and a tail",
    "key": "it has a ring and teeth",
    "boat": "it has a hull and two sails",
    "kite": "it has a cross and a tail of bows",
    "mushroom": "it has a cap on a stem",
}


class Spoken(Protocol):
    """What a sentence needs to know of a thing."""

    @property
    def kind(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def texture(self) -> str: ...
    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...


def a(phrase: str) -> str:
    """With its article.

    >>> a("orange fish")
    'an orange fish'
    """
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _look(thing: Spoken) -> str:
    """Texture, colour, name; a plain texture goes without saying."""
    texture = "" if thing.texture == "plain" else f"{thing.texture} "
    return f"{texture}{thing.colour} {thing.kind}"


def relation(one: Spoken, other: Spoken) -> str:
    """Where ``one`` is, seen from ``other``: the longer of the two distances decides."""
    dx, dy = one.x - other.x, one.y - other.y
    if abs(dx) > abs(dy):
        return "right of" if dx > 0 else "left of"
    return "below" if dy > 0 else "above"


def captions(things: tuple[Spoken, ...], background: str) -> tuple[str, ...]:
    """Five sentences; ``things[0]`` is the main one, ``things[1]``, if any, the one named beside it."""
    main, place = things[0], PLACES[background]
    plain = f"{main.colour} {main.kind}"
    if len(things) == 1:
        return (
            f"{a(_look(main))} {place}",
            f"there is {a(plain)} {place}",
            f"a large {plain} alone {place}",
            f"{a(plain)} and nothing more",
            f"the picture shows {a(_look(main))}",
        )
    other = things[1]
    second = f"{other.colour} {other.kind}"
    where = relation(main, other)
    more = f" and {a(f'{things[2].colour} {things[2].kind}')}" if len(things) > 2 else ""
    return (
        f"{a(_look(main))} {where} a small {second} {place}",
        f"there is {a(plain)} and {a(second)} {place}",
        f"a large {plain} next to a small {_look(other)}",
        f"{a(plain)} with {a(second)}{more} {place}",
        f"the picture shows {a(_look(main))} and {a(second)}",
    )


def rationales(things: tuple[Spoken, ...]) -> tuple[str, ...]:
    """Why the label is what it is: its marks, its size, what it is not."""
    main = things[0]
    name = a(main.kind)
    why = [
        f"it is {name} because {MARKS[main.kind]}",
        f"it is {name} because the largest thing is {a(f'{main.colour} {main.kind}')}",
    ]
    if len(things) > 1:
        why.append(f"it is {name} because the {things[1].kind} is smaller")
    return tuple(why)
