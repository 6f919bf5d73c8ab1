"""Which of Paddle's kernels training calls, with the GPU that tests/_support/fake_gpu.py plays. Prints KERNELS <json>.

{"kernels": {name: [types]}, "gradients": [names of nodes of autograd]}. Paddle counts the kernels by type itself, for
the statistics of mixed precision: float16, bfloat16, float32, other.
"""

import json
import tempfile

import numpy as np
import paddle

import plsc
from plsc.models.registry import create_backbone
from tests._support import fake_gpu

TYPES = ("float16", "bfloat16", "float32", "other")
SIDE, CLASSES = 16, 40
RUNS = [
    {"loss_type": "dist_arcface", "calc_acc": True},
    {"loss_type": "dist_arcface", "logits": "recompute", "scale": 128.0, "on_nonfinite": "skip"},
    {"loss_type": "dist_cosface", "use_fp16": True, "sample_ratio": 0.5, "momentum_storage": "bfloat16"},
    {"loss_type": "dist_arcface", "use_fp16": True, "amp_dtype": "bfloat16"},
    {"loss_type": "dist_softmax", "optimizer": lambda **named: paddle.optimizer.AdamW(**named)},
    {"loss_type": "arcface", "optimizer": lambda **named: paddle.optimizer.SGD(**named)},
    {"loss_type": "dist_adaface", "margin_warmup": 3, "label_smoothing": 0.1, "class_weights": [1.0] * CLASSES},
    {"loss_type": "dist_magface", "label_smoothing": 0.1, "sample_ratio": 0.5},
    {"loss_type": "magface", "optimizer": lambda **named: paddle.optimizer.Adam(**named), "label_smoothing": 0.1},
    {"loss_type": "dist_elasticface_arc_plus"},
    {"loss_type": "dist_dynamic_margin"},
    {"loss_type": "dist_softmax", "label_smoothing": 0.1},
    {"loss_type": "softmax", "optimizer": lambda **named: paddle.optimizer.Adam(**named)},
]


class Pixels:
    """Noise."""

    num_classes = CLASSES
    labels = np.arange(60) % CLASSES

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return np.random.default_rng(index).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8), self.labels[index]


def train(settings, folder):
    """Two epochs, the second by a run that resumes."""
    for epochs in (1, 2):
        entry = plsc.Entry()
        entry.train_dataset, entry.with_test = Pixels(), False
        entry.set_class_num(CLASSES)
        entry.set_emb_size(16)
        entry.set_image_shape((3, SIDE, SIDE))
        entry.set_model_name("ResNetTiny")
        entry.set_train_batch_size(20)
        entry.set_num_workers(0)
        entry.set_model_save_dir(folder)
        entry.set_auto_resume(True)
        entry.set_train_epochs(epochs)
        for name, value in settings.items():
            setattr(entry, name, value)
        entry.train()


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
