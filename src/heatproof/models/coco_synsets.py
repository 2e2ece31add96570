"""Which ImageNet-1k classes mean a COCO category, by WordNet synset; read by ``models/imagenet.py``.

A class is listed where its synset is a kind of the category as COCO's annotators use the word (a tandem is a
bicycle, a locomotive is what they draw a train around). ``NEAREST`` lists categories for which ImageNet has the
characteristic part only. ``LEFT_OUT`` have no class at all; ImageNet's own "kite" is a bird, so the name of the
category is not trusted, only the synset.
"""

from __future__ import annotations

from collections.abc import Sequence

# One wnid, or the first and last of a run of classes (they are sorted by wnid).
SYNSETS = {
    "bicycle": "n02835271 n03792782",  # tandem, mountain bike
    "car": "n02701002 n02814533 n02930766 n03100240 n03594945 n03670208 n03770679 n03777568 "
    "n04037443 n04285008",  # ambulance, beach wagon, cab, convertible, jeep, limousine, minivan, ...
    "motorcycle": "n03785016 n03791053",  # moped, motor scooter
    "airplane": "n02690373 n04552348",  # airliner, warplane
    "bus": "n03769881 n04146614 n04487081",  # minibus, school bus, trolleybus
    "train": "n02917067 n03272562 n04310018",  # bullet train, electric and steam locomotive
    "truck": "n03345487 n03417042 n03796401 n03930630 n04461696 n04467665",  # fire engine to trailer truck
    "boat": "n02951358 n02981792 n03344393 n03447447 n03662601 n04147183 n04273569 n04483307 "
    "n04612504",  # canoe, catamaran, fireboat, gondola, lifeboat, schooner, speedboat, trimaran, yawl
    "traffic light": "n06874185",
    "parking meter": "n03891332",
    "bench": "n03891251",  # park bench
    "bird": "n01514668-n01622779 n01795545-n01860187 n02002556-n02058221",  # cock to albatross
    "cat": "n02123045-n02124075",  # tabby to Egyptian cat; cougar and lynx are none
    "dog": "n02085620-n02113978",  # Chihuahua to Mexican hairless; wolves and dingos are none
    "horse": "n02389026",  # sorrel
    "sheep": "n02412080 n02415577",  # ram, bighorn
    "cow": "n02403003",  # ox
    "elephant": "n01871265 n02504013 n02504458",  # tusker, Indian, African
    "bear": "n02132136-n02134418",  # brown, American black, ice and sloth bear
    "zebra": "n02391049",
    "backpack": "n02769748",
    "umbrella": "n04507155",
    "handbag": "n04026417",  # purse
    "tie": "n02865351 n02883205 n04591157",  # bolo tie, bow tie, Windsor tie
    "skis": "n04228054",
    "sports ball": "n02799071 n02802426 n03134739 n03445777 n03942813 n04118538 n04254680 "
    "n04409515 n04540053",  # baseball, basketball, croquet, golf, ping-pong, rugby, soccer, tennis, volleyball
    "tennis racket": "n04039381",  # racket
    "bottle": "n02823428 n03937543 n03983396 n04557648 n04591713",  # beer, pill, pop, water, wine
    "wine glass": "n03443371",  # goblet
    "cup": "n03063599 n07930864",  # coffee mug, cup
    "knife": "n03041632",  # cleaver
    "spoon": "n04597913",  # wooden spoon
    "bowl": "n03775546 n04263257",  # mixing bowl, soup bowl
    "banana": "n07753592",
    "apple": "n07742313",  # Granny Smith
    "sandwich": "n07697313",  # cheeseburger
    "orange": "n07747607",
    "broccoli": "n07714990",
    "hot dog": "n07697537",
    "pizza": "n07873807",
    "chair": "n02791124 n03376595 n04099969 n04429376",  # barber, folding, rocking chair, throne
    "couch": "n04344873",  # studio couch
    "bed": "n03388549",  # four-poster
    "dining table": "n03201208",
    "tv": "n03782006 n04152593 n04404412",  # monitor, screen, television
    "laptop": "n03642806 n03832673",  # laptop, notebook
    "mouse": "n03793489",  # the computer's
    "remote": "n04074963",
    "keyboard": "n03085013",  # the computer's
    "cell phone": "n02992529",
    "microwave": "n03761084",
    "toaster": "n04442312",
    "refrigerator": "n04070727",
    "clock": "n02708093 n03196217 n04548280",  # analog, digital, wall clock
    "vase": "n04522168",
    "teddy bear": "n04399382",
    "hair drier": "n03483316",
}
NEAREST = {
    "potted plant": "n03991062",  # the flowerpot
    "toilet": "n04447861",  # the toilet seat
    "oven": "n04330267",  # the stove around it
    "sink": "n04553703",  # the washbasin
}
LEFT_OUT = (
    *("person", "fire hydrant", "stop sign", "giraffe", "suitcase", "frisbee", "snowboard", "kite"),
    *("baseball bat", "baseball glove", "skateboard", "surfboard", "fork", "carrot", "donut", "cake"),
    *("book", "scissors", "toothbrush"),
)


def classes(wnids: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """COCO category -> the class indices that mean it; ``wnids`` are a net's classes in order.

    >>> classes([f"n0{k}" for k in range(2389020, 2391050)])["zebra"]
    (2029,)
    """
    found = {name: _members(text, wnids) for name, text in {**SYNSETS, **NEAREST}.items()}
    return {name: members for name, members in found.items() if members}


def _members(text: str, wnids: Sequence[str]) -> tuple[int, ...]:
    runs = [(run.split("-")[0], run.split("-")[-1]) for run in text.split()]
    return tuple(k for k, w in enumerate(wnids) if any(first <= w <= last for first, last in runs))
