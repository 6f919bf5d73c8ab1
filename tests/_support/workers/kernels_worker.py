"""Which of Paddle's kernels training calls, with the GPU that tests/_support/fake_gpu.py plays. Prints KERNELS <json>.

{"kernels": {name: [types]}, "gradients": [names of nodes of autograd]}. Paddle counts the kernels by type itself, for
the statistics of mixed precision: float16, bfloat16, float32, other.
"""

import json
import tempfile

import paddle

from plsc.models.registry import create_backbone
from tests._support import fake_gpu
from tests._support.patterns import CLASSES, make_entry

TYPES = ("float16", "bfloat16", "float32", "other")
RUNS = [
    {"loss_type": "dist_arcface", "calc_acc": True},
    {"loss_type": "dist_arcface", "logits": "recompute", "scale": 128.0, "on_nonfinite": "skip"},
    {"loss_type": "dist_cosface", "use_fp16": True, "sample_ratio": 0.5, "momentum_storage": "bfloat16"},
    {"loss_type": "dist_arcface", "use_fp16": True, "amp_dtype": "bfloat16", "center_storage": "bfloat16"},
    {"loss_type": "dist_arcface", "center_storage": "bfloat16", "momentum_storage": "int8"},
    {"loss_type": "dist_arcface", "momentum_storage": "int8", "sample_ratio": 0.5},
    {"loss_type": "dist_cosface", "center_storage": "bfloat16", "center_location": "host", "sample_ratio": 0.5},
    {"loss_type": "dist_softmax", "optimizer": lambda **named: paddle.optimizer.AdamW(**named)},
    {"loss_type": "arcface", "optimizer": lambda **named: paddle.optimizer.SGD(**named)},
    {"loss_type": "dist_adaface", "margin_warmup": 3, "label_smoothing": 0.1, "class_weights": [1.0] * CLASSES},
    {"loss_type": "dist_magface", "label_smoothing": 0.1, "sample_ratio": 0.5},
    {"loss_type": "magface", "optimizer": lambda **named: paddle.optimizer.Adam(**named), "label_smoothing": 0.1},
    {"loss_type": "dist_elasticface_arc_plus"},
    {"loss_type": "dist_dynamic_margin"},
    {"loss_type": "dist_softmax", "label_smoothing": 0.1},
    {"loss_type": "dist_curricularface", "subcenters": 2, "interclass_filter": 0.3, "use_fp16": True},
    {"loss_type": "dist_curricularface", "calc_acc": True, "subcenters": 3, "sample_ratio": 0.5},
    {"loss_type": "dist_sphereface2", "use_fp16": True, "loss_options": {"t": 2.5}},
    {"loss_type": "dist_uniface", "subcenters": 2, "interclass_filter": 0.3, "calc_acc": True},
    {
        **{"loss_type": "uniface", "subcenters": 2, "interclass_filter": 0.3, "calc_acc": True},
        **{"optimizer": lambda **named: paddle.optimizer.Adam(**named)},
    },
    {"loss_type": "softmax", "optimizer": lambda **named: paddle.optimizer.Adam(**named)},
]


def train(settings, folder):
    """Two epochs, the second by a run that resumes."""
    for epochs in (1, 2):
        make_entry(
            folder, auto_resume=True, train_epochs=epochs, **{"scale": 64.0, "calc_acc": False, **settings}
        ).train()


def nodes_of(tensor):
    """The names of the nodes behind a tensor."""
    found, left = set(), [tensor.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += node.next_functions
    return {node.name() for node in found}


def main():
    gradients = set()
    paddle.set_flags({"FLAGS_low_precision_op_list": 1})
    for settings in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            train(settings, folder)
    for name in ("ResNet50", "ResNetTiny"):
        network = create_backbone(name, emb_dim=16, image_shape=(3, 32, 32))
        features = network(paddle.randn([2, 3, 32, 32]))
        features.backward(paddle.ones_like(features))
        gradients |= nodes_of(features)
    counts = {name: count.split(",") for name, count in paddle.base.core.get_low_precision_op_list().items()}
    kernels = {name: [kind for kind, times in zip(TYPES, count) if int(times)] for name, count in counts.items()}
    for name, kind in fake_gpu.half_products:
        kernels[name].append(kind)
    print("KERNELS", json.dumps({"kernels": kernels, "gradients": sorted(gradients)}))


if __name__ == "__main__":
    main()
