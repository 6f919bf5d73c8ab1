"""Backbones by name, registered, and from a module of the user's."""

from __future__ import annotations

import sys

import paddle
import pytest

import plsc
from plsc import ConfigError, create_backbone, list_backbones, register_backbone
from plsc.config import Config
from plsc.models import registry
from tests._support.ranks import run

MODULE = """
import paddle
import plsc

class Net(plsc.BaseModel):
    def __init__(self, emb_dim=16, image_shape=(3, 16, 16)):
        super().__init__(emb_dim)
        self.body = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(3 * image_shape[1] ** 2, emb_dim))

    def forward(self, images):
        return self.body(images)

class Bare(paddle.nn.Layer):
    pass

number = 3

def text(emb_dim, image_shape):
    return "no layer"
"""


@pytest.fixture
def known(monkeypatch):
    """Registrations of a test end with it."""
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))


@pytest.fixture
def my_net(tmp_path, monkeypatch):
    """A folder with my_net.py, as the current one, which is not on Python's path."""
    (tmp_path / "my_net.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    sys.modules.pop("my_net", None)


@pytest.mark.parametrize("name", ["ResNet50", "ResNetTiny"])
def test_built_in_backbones_have_the_shape_that_was_asked_for(name):
    net = create_backbone(name, emb_dim=24, image_shape=(3, 48, 32))
    assert net(paddle.rand([2, 3, 48, 32])).shape == [2, 24]


def test_the_help_names_every_built_in_backbone():
    assert {"ResNet50", "ResNet101", "ResNet152", "ResNetTiny", "IResNet50", "ViT-B"} <= set(list_backbones())
    described = Config.model_fields["model_name"].description
    assert all(name in described for name in list_backbones())


def test_a_class_is_registered_by_decorator_and_a_function_by_call(known):
    @register_backbone
    class Small(plsc.BaseModel):
        def __init__(self, emb_dim, image_shape):
            super().__init__(emb_dim)
            self.fc = paddle.nn.Linear(3, emb_dim)

    @register_backbone("smaller")
    class Smaller(Small):
        pass

    assert register_backbone("by function", lambda emb_dim, image_shape: Small(emb_dim, image_shape))
    register_backbone("by place", "plsc.models.tiny:ResNetTiny")
    assert {"Small", "smaller", "by function", "by place"} <= set(list_backbones())
    assert create_backbone("by place", emb_dim=8, image_shape=(3, 32, 32)).emb_dim == 8
    for name, kind in (("Small", Small), ("smaller", Smaller), ("by function", Small)):
        net = create_backbone(name, emb_dim=8)
        assert type(net) is kind and net.emb_dim == 8


def test_a_name_is_taken_once_but_the_same_definition_may_run_again(known):
    def make(factory="one"):
        def net(emb_dim, image_shape):
            return factory

        return net

    first, again = make(), make()
    register_backbone("net", first)
    assert register_backbone("net", again) is again
    with pytest.raises(ConfigError, match=r"register_backbone\('ResNet50'\): the name belongs to plsc.models.resnet"):
        register_backbone("ResNet50", first)


@pytest.mark.parametrize(
    "act, words",
    [
        (lambda: register_backbone("a:b", list), "expected a name without ':'"),
        (lambda: register_backbone("three", 3), r"got 3 \(int\), expected a class, a function"),
        (lambda: register_backbone("text", "my_net"), "or 'package.module:Class'"),
        (
            lambda: create_backbone("resnet50"),
            r"got 'resnet50' \(str\); did you mean 'ResNet50'\? accepted: EdgeFace-Base, ",
        ),
        (lambda: create_backbone(3), r"got 3 \(int\); expected a name"),
        (lambda: create_backbone("my net:Net"), "expected 'package.module:Class'"),
        (lambda: create_backbone("os:system"), r"cannot be called as posix:system\(emb_dim=..., image_shape=...\)"),
        (lambda: create_backbone("json.decode:Net"), "there is no module 'json.decode' in .* set PYTHONPATH"),
    ],
)
def test_wrong_names_say_what_is_expected(act, words):
    with pytest.raises(ConfigError, match=words):
        act()


def test_a_class_is_found_in_a_module_of_the_current_folder(my_net):
    before = list(sys.path)
    assert create_backbone("my_net:Net", emb_dim=8, image_shape=(3, 16, 16))(paddle.rand([2, 3, 16, 16])).shape == [
        2,
        8,
    ]
    assert sys.path == before


@pytest.mark.parametrize(
    "name, words",
    [
        ("my_nett:Net", "there is no module 'my_nett' in .*; run in the folder of the module"),
        ("my_net:Nett", "my_net has no class or function 'Nett'; did you mean 'Net'"),
        ("my_net:number", "has no class or function 'number'"),
        ("my_net:Bare", r"cannot be called as my_net:Bare\(emb_dim=..., image_shape=...\)"),
        ("my_net:text", "my_net:text returned str, expected a paddle.nn.Layer"),
    ],
)
def test_what_a_module_lacks_is_said(my_net, name, words):
    with pytest.raises(ConfigError, match=words):
        create_backbone(name)


@pytest.mark.parametrize(
    "text, words",
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'.*my_net.py, line 1"),
        ("x = 1\nx.y", r"importing my_net failed: AttributeError: .*\(my_net.py, line 2\)"),
        ("def f(:", "importing my_net failed: SyntaxError"),
        ("import sys\nsys.exit(0)", r"importing my_net failed: SystemExit: 0 \(my_net.py, line 2\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_reason(my_net, text, words):
    (my_net / "my_net.py").write_text(text)
    with pytest.raises(ConfigError, match=f"model_name 'my_net:Net': .*{words}"):
        create_backbone("my_net:Net")


def test_a_wrong_module_fails_at_the_setter_and_at_the_attribute():
    with pytest.raises(ConfigError, match="there is no module 'no_such_net'"):
        plsc.Entry().set_model_name("no_such_net:Net")
    with pytest.raises(ConfigError, match="there is no module 'no_such_net'"):
        plsc.Entry().model_name = "no_such_net:Net"


@pytest.mark.slow
def test_the_command_line_trains_verifies_and_exports_a_class_of_the_current_folder(my_net, data_dir):
    plsc_script = (
        [sys.executable, "-P", "-m", "plsc"] if sys.version_info >= (3, 11) else [sys.executable, "-m", "plsc"]
    )
    settings = (
        "--num-classes 6 --image-shape 3,16,16 --emb-dim 16 --train-batch-size 10 --num-workers 0 --train-steps 2"
    )
    run(
        [*plsc_script, "train", "--model-name", "my_net:Net", "--dataset-dir", data_dir, *settings.split()],
        cwd=my_net,
    )
    # The checkpoint's manifest holds the name.
    assert '"lfw/pairs": 20' in run([*plsc_script, "test", "--dataset-dir", data_dir], cwd=my_net)[1]
    run([*plsc_script, "export", "--to", "model"], cwd=my_net)
    assert plsc.load_inference_model(my_net / "model").emb_dim == 16
