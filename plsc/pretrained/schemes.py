"""The names that libraries give to the layers of the same networks, as tables.

Each scheme translates its names to common ones. A tensor of a file and one of a network belong together where their
common names are equal, so each pair of libraries needs no table of its own. In common names the units of a network are
numbered through all stages.

    arcface_torch   layer2.0.conv1.weight        ->  unit.3.body.1.weight
    AdaFace         body.3.res_layer.1.weight    ->  unit.3.body.1.weight
    ResNet50        stages.3.body.1.weight       ->  unit.3.body.1.weight
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# Last parts of names that differ between libraries: PyTorch's -> the common ones, which are Paddle's but for `_weight`.
_LAST = {"running_mean": "_mean", "running_var": "_variance", "_weight": "weight"}
# A count that PyTorch keeps for a kind of averaging that is not used here.
IGNORED = re.compile(r"(^|\.)num_batches_tracked$")


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The names of one library.

    Attributes:
        name: of the library, for messages.
        marker: pattern of a name that tells the scheme from those after it.
        unit: pattern of the beginning of the names of units, with groups `unit` and, if units are numbered anew in each
            stage, `stage`.
        parts: within a unit, beginning of a name -> beginning of the common name.
        others: outside of units, the same.
        implied: pattern of common names -> what a tensor is that the library leaves out: 'zeros', 'ones', 'identity'
            (of a 1 x 1 convolution), 'unit variance' (1 - 1e-5, so that batch normalization divides by 1).
    """

    name: str
    marker: str
    unit: str = "$^"
    parts: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    implied: Mapping[str, str] = field(default_factory=dict)

    def translate(self, names: Iterable[str]) -> dict[str, str]:
        """{name: common name}."""
        names = list(names)
        places = {name: found for name in names if (found := re.match(self.unit, name))}
        order = {place: number for number, place in enumerate(sorted({_place(found) for found in places.values()}))}
        return {
            name: _common_end(
                f"unit.{order[_place(places[name])]}.{_begin(name[places[name].end() :], self.parts)}"
                if name in places
                else _begin(name, self.others)
            )
            for name in names
        }


def scheme_of(names: Iterable[str]) -> Scheme:
    """The scheme that names are in; `PLAIN` where they are in no known one."""
    names = list(names)
    return next((scheme for scheme in SCHEMES if any(re.match(scheme.marker, name) for name in names)), PLAIN)


def _place(found: re.Match[str]) -> tuple[int, int]:
    groups = found.groupdict()
    return int(groups.get("stage") or 0), int(groups["unit"])


def _begin(name: str, table: Mapping[str, str]) -> str:
    """A name with the longest beginning that is in a table replaced."""
    for known in sorted(table, key=len, reverse=True):
        if name == known or name.startswith(f"{known}."):
            return table[known] + name[len(known) :]
    return name


def _common_end(name: str) -> str:
    begin, dot, last = name.rpartition(".")
    return f"{begin}{dot}{_LAST.get(last, last)}"


_SHORTCUT = {"downsample.0": "short.0", "downsample.1": "short.1"}

SCHEMES = (
    # insightface's recognition/arcface_torch; IResNet here, in PLSC 2.x and in CVLface's iresnet_insightface
    Scheme(
        name="arcface_torch",
        marker=r"layer1\.0\.prelu\.",
        unit=r"layer(?P<stage>\d+)\.(?P<unit>\d+)\.",
        parts={
            **{"bn1": "body.0", "conv1": "body.1", "bn2": "body.2", "prelu": "body.3", "conv2": "body.4"},
            **{"bn3": "body.5", **_SHORTCUT},
        },
        others={
            **{"conv1": "stem.0", "bn1": "stem.1", "prelu": "stem.2"},
            **{"bn2": "output.0", "fc": "output.3", "features": "output.4"},
        },
    ),
    # IR networks of AdaFace and CVLface. Where channels stay as many, their shortcut of stride 2 picks every second
    # pixel, as a convolution of 1 x 1 by the identity does; the last normalization has no weight and no bias.
    Scheme(
        name="AdaFace and CVLface",
        marker=r"input_layer\.0\.",
        unit=r"body\.(?P<unit>\d+)\.",
        parts={"res_layer": "body", "shortcut_layer": "short"},
        others={"input_layer": "stem", "output_layer": "output"},
        implied={
            **{r"unit\.0\.short\.0\.weight": "identity", r"unit\.0\.short\.1\.weight": "ones"},
            **{r"unit\.0\.short\.1\.(bias|_mean)": "zeros", r"unit\.0\.short\.1\._variance": "unit variance"},
            **{r"output\.4\.weight": "ones", r"output\.4\.bias": "zeros"},
        },
    ),
    # ResNet50, 101 and 152 of this library
    Scheme(
        name="PLSC's ResNet",
        marker=r"stages\.0\.body\.",
        unit=r"stages\.(?P<unit>\d+)\.",
        parts={"shortcut": "short"},
        others={"head": "output"},
    ),
    # residual networks of PaddleClas, which numbers units through all stages
    Scheme(
        name="PaddleClas",
        marker=r"blocks\.0\.conv0\.conv\.",
        unit=r"blocks\.(?P<unit>\d+)\.",
        parts={
            **{f"conv{index}.conv": f"conv.{index}" for index in range(3)},
            **{f"conv{index}.bn": f"bn.{index}" for index in range(3)},
            **{"short.conv": "short.0", "short.bn": "short.1"},
        },
        others={"stem.0.conv": "stem.0", "stem.0.bn": "stem.1"},
    ),
    # those of torchvision and paddle.vision
    Scheme(
        name="torchvision and paddle.vision",
        marker=r"layer1\.0\.conv1\.",
        unit=r"layer(?P<stage>\d+)\.(?P<unit>\d+)\.",
        parts={
            **{f"conv{index + 1}": f"conv.{index}" for index in range(3)},
            **{f"bn{index + 1}": f"bn.{index}" for index in range(3)},
            **_SHORTCUT,
        },
        others={"conv1": "stem.0", "bn1": "stem.1"},
    ),
)
# Names that stay as they are: MobileFaceNet and ViT have the same in arcface_torch, CVLface, PLSC 2.x and here.
PLAIN = Scheme(name="the network's own names", marker="")
