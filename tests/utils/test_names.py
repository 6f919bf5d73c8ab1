"""What a message says about an unknown name."""

from __future__ import annotations

import pytest

from plsc.utils.names import did_you_mean, nearest_name, one_of

NAMES = ["num_classes", "train_batch_size", "test_batch_size", "ResNet50", "lr"]


@pytest.mark.parametrize(
    "name, near",
    [
        ("num_clases", "num_classes"),
        ("train_batchsize", "train_batch_size"),
        ("batch_size", "train_batch_size"),
        ("resnet50", "ResNet50"),
        ("Resnet", "ResNet50"),
        ("entirely_different", None),
        ("", None),
    ],
)
def test_the_nearest_name(name, near):
    assert nearest_name(name, NAMES) == near
    assert did_you_mean(name, NAMES) == (f"did you mean '{near}'? " if near else "")


def test_one_of():
    assert one_of("lr", NAMES) == "lr"
    with pytest.raises(ValueError, match="did you mean 'lr'. accepted: num_classes, .*, lr$"):
        one_of("lrr", NAMES)
