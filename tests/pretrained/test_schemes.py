"""The tables of names."""

from __future__ import annotations

import pytest

from plsc.pretrained.schemes import PLAIN, SCHEMES, scheme_of


def ir_names(scheme, units=(2, 1)):
    """The names of a small IR network in the scheme of a library, in one order for all."""
    outer = ["stem.0.weight", "stem.1.bias", "stem.2.weight", "output.0._mean", "output.3.weight", "output.4._variance"]
    inner = ["body.0.weight", "body.1.weight", "body.2._mean", "body.3.weight", "body.4.weight", "body.5.bias"]
    common = outer + [f"unit.{unit}.{name}" for unit in range(sum(units)) for name in inner]
    return [_named(name, scheme, units) for name in common + ["unit.2.short.0.weight", "unit.2.short.1.bias"]]


def _named(name, scheme, units):
    begin, last = name.rsplit(".", 1)
    parts = begin.split(".")
    if scheme == "arcface_torch":
        last = {"_mean": "running_mean", "_variance": "running_var"}.get(last, last)
        outer = {"stem": ["conv1", "bn1", "prelu"], "output": ["bn2", "", "", "fc", "features"]}
        if parts[0] in outer:
            return f"{outer[parts[0]][int(parts[1])]}.{last}"
        stage, unit = (1, int(parts[1])) if int(parts[1]) < units[0] else (2, int(parts[1]) - units[0])
        body = ["bn1", "conv1", "bn2", "prelu", "conv2", "bn3"]
        inner = body[int(parts[3])] if parts[2] == "body" else f"downsample.{parts[3]}"
        return f"layer{stage}.{unit}.{inner}.{last}"
    ours = scheme == "PLSC's ResNet"
    words = {"unit": "stages", "short": "shortcut", "output": "head"} if ours else {}
    if not ours:
        last = {"_mean": "running_mean", "_variance": "running_var"}.get(last, last)
        words = {"unit": "body", "body": "res_layer", "short": "shortcut_layer", "stem": "input_layer"}
        words["output"] = "output_layer"
    return ".".join([*(words.get(part, part) for part in parts), last])


@pytest.mark.parametrize("name", ["arcface_torch", "AdaFace and CVLface", "PLSC's ResNet"])
def test_libraries_of_ir_networks_share_common_names(name):
    names, reference = ir_names(name), ir_names("arcface_torch")
    scheme = scheme_of(names)
    assert scheme.name == name
    expected = scheme_of(reference).translate(reference)
    assert list(scheme.translate(names).values()) == list(expected.values())
    assert len(set(expected.values())) == len(names)


def test_paddleclas_and_torchvision_share_common_names():
    clas = ["stem.0.conv.weight", "stem.0.bn._mean", "blocks.0.conv0.conv.weight", "blocks.0.conv2.bn._variance"]
    clas += ["blocks.3.conv1.conv.weight", "blocks.3.short.conv.weight", "blocks.3.short.bn.bias", "fc.weight"]
    clas += ["blocks.1.conv0.conv.weight", "blocks.2.conv0.conv.weight"]
    vision = ["conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer1.0.bn3.running_var"]
    vision += ["layer2.0.conv2.weight", "layer2.0.downsample.0.weight", "layer2.0.downsample.1.bias", "fc.weight"]
    vision += ["layer1.1.conv1.weight", "layer1.2.conv1.weight"]
    assert scheme_of(clas).name == "PaddleClas" and scheme_of(vision).name == "torchvision and paddle.vision"
    assert [*scheme_of(clas).translate(clas).values()] == [*scheme_of(vision).translate(vision).values()]


def test_units_are_numbered_by_number_and_not_by_text():
    names = [f"layer1.{unit}.prelu.weight" for unit in range(12)] + ["layer10.0.prelu.weight", "layer2.0.prelu.weight"]
    common = scheme_of(names).translate(names)
    assert [common[name] for name in names] == [f"unit.{unit}.body.3.weight" for unit in [*range(12), 13, 12]]


def test_other_names_stay_but_for_their_last_part():
    names = ["blocks.0.attn.qkv.weight", "feature.1.running_var", "act._weight", "pos_embed", "weight"]
    assert scheme_of(names) is PLAIN
    assert [*PLAIN.translate(names).values()] == [
        *("blocks.0.attn.qkv.weight", "feature.1._variance", "act.weight", "pos_embed", "weight")
    ]


def test_markers_tell_the_schemes_apart():
    assert [scheme.name for scheme in SCHEMES] == [
        *("arcface_torch", "AdaFace and CVLface", "PLSC's ResNet", "PaddleClas", "torchvision and paddle.vision")
    ]
