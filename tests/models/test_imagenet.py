"""The two real networks: layout on random weights, accuracy on real photographs where they are at hand."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from heatproof.contract import Object, Refused, Sample
from heatproof.models import coco_synsets
from heatproof.models.imagenet import MobileNetV2, SameConv, SqueezeNet, SqueezeNetNet, labels

# of the first 100 images by name, on this sample as re-encoded; the originals give 89.3 and 62.1 % over all 1,000
EXPECTED = {"MobileNetV2": (224, 0.86), "SqueezeNet": (227, 0.60)}


def images(data: Path, count: int) -> tuple[list[str], list[np.ndarray]]:
    with zipfile.ZipFile(data / "images" / "imagenet_sample_1000_c256.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".JPEG"))[:: 1000 // count]
        found = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
    return [name.split("_")[0] for name in names], found


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MobileNetV2, SqueezeNet])
def test_top_1_of_real_photographs(kind: Any, data: Path) -> None:
    model = kind(str(data)).load("m")
    size, share = EXPECTED[kind.__name__]
    wnids, pictures = images(data, 100)
    x = torch.stack([model.frame.image(picture) for picture in pictures])
    assert x.shape[1:] == (3, size, size)
    said = model.logits(x).argmax(1).tolist()
    right = np.mean([model.labels[wnid] == (k,) for wnid, k in zip(wnids, said, strict=True)])
    assert right == pytest.approx(share, abs=0.1)
    if kind is SqueezeNet:  # the channel order matters: RGB order costs a third of it
        flipped = model.logits(x[:, [2, 1, 0]]).argmax(1).tolist()
        wrong = np.mean([model.labels[w] == (k,) for w, k in zip(wnids, flipped, strict=True)])
        assert wrong < right - 0.08


@pytest.mark.parametrize(("kind", "last"), [(MobileNetV2, (1280, 7, 7)), (SqueezeNet, (512, 14, 14))])
def test_sites_compose_to_the_score(kind: Any, last: tuple[int, ...], data: Path) -> None:
    model = kind(str(data)).load("m")
    picture = images(data, 1)[1][0]
    (cases,) = model.ask([Sample("s", lambda: picture)], "predicted")
    x, whole = model.stack(cases), model.clean(cases)
    with torch.no_grad():
        for index in (0, 3, -1):
            site = model.site("image.conv", index)
            seen = model.upto(site, x, cases)
            assert torch.equal(model.above(site, seen, cases), whole)
    assert seen.shape[1:] == last


def test_same_padding_is_tensorflows() -> None:
    """Output k of stride 2 reads inputs 2k to 2k + 2, the last of them padding at the right and bottom edge."""
    conv = SameConv(1, 1, stride=2)
    layer = conv.get_submodule("0")
    with torch.no_grad():
        layer.weight.fill_(0).view(-1)[-1] = 1.0  # reads the window's bottom right corner
        layer.bias.zero_()
        x = torch.arange(1.0, 37.0).view(1, 1, 6, 6) / 10
        expected = F.pad(x, (0, 1, 0, 1))[0, 0, 2::2, 2::2]
        assert torch.equal(conv(x)[0, 0], expected)


def test_pools_round_up() -> None:
    net = SqueezeNetNet().eval()
    with torch.no_grad():
        assert net.features(torch.zeros(1, 3, 224, 224)).shape == (1, 512, 13, 13)
        assert net.features(torch.zeros(1, 3, 227, 227)).shape == (1, 512, 14, 14)


def test_coco_names_mean_synsets(data: Path) -> None:
    index = json.loads((data / "annotations/imagenet/imagenet_class_index.json").read_text())
    classes = [index[str(k)] for k in range(1000)]
    wnids = [wnid for wnid, _ in classes]
    found = coco_synsets.classes(wnids)
    names = json.loads((data / "annotations/coco_mini/instances_val2017.json").read_text())["categories"]
    assert {n["name"] for n in names} == {*found, *coco_synsets.LEFT_OUT}
    named = {name: [classes[k][1].split(",")[0] for k in members] for name, members in found.items()}
    assert len(named["dog"]) == 118
    assert (named["dog"][0], named["dog"][-1]) == ("Chihuahua", "Mexican hairless")
    assert len(named["bird"]) == 59
    assert named["cat"] == ["tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"]
    assert named["bear"] == ["brown bear", "American black bear", "ice bear", "sloth bear"]
    assert named["mouse"] == ["mouse"]
    told = labels(classes)
    assert told["kite (n01608432)"] == (21,)  # the bird
    assert "kite" not in told
    assert told["crane (n02012849)"] != told["crane (n03126707)"]
    assert told["n02391049"] == told["zebra"] == (340,)
    assert all(len(told[wnid]) == 1 for wnid in wnids)


def test_objects_are_asked_by_category(data: Path) -> None:
    model = SqueezeNet(str(data)).load("m")
    picture = images(data, 1)[1][0]
    things = [Object("dog", (10, 10, 60, 60)), Object("kite", (0, 0, 9, 9)), Object("person", (5, 5, 50, 90))]
    (cases,) = model.ask([Sample("s", lambda: picture, objects=tuple(things))], "objects")
    assert [case.about for case in cases] == ["dog"]
    dogs = model.labels["dog"]
    logits = model.logits(model.stack(cases))[0]
    assert cases[0].target == max(dogs, key=lambda k: float(logits[k]))


def test_missing_or_torn_files_are_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(Refused, match=r"squeezenet1_1\.safetensors is not there; name the data folder"):
        SqueezeNet(str(tmp_path)).load("m")
    (tmp_path / "weights").mkdir()
    (tmp_path / "annotations" / "imagenet").mkdir(parents=True)
    (tmp_path / "annotations/imagenet/imagenet_class_index.json").write_text("{}")
    whole = (data / "weights/squeezenet1_1.safetensors").read_bytes()
    (tmp_path / "weights/squeezenet1_1.safetensors").write_bytes(whole[:1000])
    with pytest.raises(Refused, match=r"squeezenet1_1\.safetensors: "):
        SqueezeNet(str(tmp_path)).load("m")
