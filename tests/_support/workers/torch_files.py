"""Writes files of weights with PyTorch, and what their networks compute: run by an interpreter that has it.

    python torch_files.py FOLDER

Each case is FOLDER/<case>.pt (or .safetensors, .onnx) and FOLDER/<case>.npz with 'images' [2, 3, S, S] and 'outputs'
[2, D]. The networks have the names of the libraries that publish weights, and are small.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

SIDE, DIM = 32, 24


def conv(a, b, kernel, stride=1, groups=1):
    return nn.Conv2d(a, b, kernel, stride, kernel // 2, groups=groups, bias=False)


class Unit(nn.Module):
    """A unit under arcface_torch's names."""

    def __init__(self, a, b, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(a), conv(a, b, 3)
        self.bn2, self.prelu = nn.BatchNorm2d(b), nn.PReLU(b)
        self.conv2, self.bn3 = conv(b, b, 3, stride), nn.BatchNorm2d(b)
        if stride != 1 or a != b:
            self.downsample = nn.Sequential(conv(a, b, 1, stride), nn.BatchNorm2d(b))

    def forward(self, x):
        short = self.downsample(x) if hasattr(self, "downsample") else x
        return short + self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))


class IResNet(nn.Module):
    def __init__(self, units):
        super().__init__()
        self.conv1, self.bn1, self.prelu = conv(3, 64, 3), nn.BatchNorm2d(64), nn.PReLU(64)
        channels = 64
        for index, (width, count) in enumerate(zip((64, 128, 256, 512), units), start=1):
            stage = [Unit(channels, width, 2), *(Unit(width, width, 1) for _ in range(count - 1))]
            setattr(self, f"layer{index}", nn.Sequential(*stage))
            channels = width
        self.bn2, self.fc = nn.BatchNorm2d(512), nn.Linear(512 * (SIDE // 16) ** 2, DIM)
        self.features = nn.BatchNorm1d(DIM)
        self.features.weight.requires_grad = False

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.bn2(x).flatten(1)))


class AdaUnit(nn.Module):
    """A unit under AdaFace's names: it has no weights in the shortcut where channels stay as many."""

    def __init__(self, a, b, stride):
        super().__init__()
        same = nn.MaxPool2d(1, stride)
        self.shortcut_layer = same if a == b else nn.Sequential(conv(a, b, 1, stride), nn.BatchNorm2d(b))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(a), conv(a, b, 3), nn.BatchNorm2d(b), nn.PReLU(b), conv(b, b, 3, stride), nn.BatchNorm2d(b)
        )

    def forward(self, x):
        return self.res_layer(x) + self.shortcut_layer(x)


class AdaNet(nn.Module):
    def __init__(self, units):
        super().__init__()
        self.input_layer = nn.Sequential(conv(3, 64, 3), nn.BatchNorm2d(64), nn.PReLU(64))
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512), nn.Dropout(0.4), nn.Flatten(), nn.Linear(512 * (SIDE // 16) ** 2, DIM),
            nn.BatchNorm1d(DIM, affine=False),
        )  # fmt: skip
        body, channels = [], 64
        for width, count in zip((64, 128, 256, 512), units):
            body += [AdaUnit(channels, width, 2), *(AdaUnit(width, width, 1) for _ in range(count - 1))]
            channels = width
        self.body = nn.Sequential(*body)

    def forward(self, x):
        return self.output_layer(self.body(self.input_layer(x)))


class Layers(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class Plus(Layers):
    def forward(self, x):
        return x + self.layers(x)


def conv_block(a, b, kernel=1, stride=1, groups=1, padding=None, act=True):
    padding = kernel // 2 if padding is None else padding
    layers = [nn.Conv2d(a, b, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(b)]
    return Layers(*layers, *([nn.PReLU(b)] if act else []))


def depthwise(a, b, groups, stride, kind=Layers):
    return kind(conv_block(a, groups), conv_block(groups, groups, 3, stride, groups), conv_block(groups, b, act=False))


class MobileFaceNet(nn.Module):
    def __init__(self):
        super().__init__()

        def stage(c, count, groups):
            return Layers(*(depthwise(c, c, groups, 1, Plus) for _ in range(count)))

        self.layers = nn.ModuleList(
            [conv_block(3, 128, 3, 2), conv_block(128, 128, 3, groups=64), depthwise(128, 128, 128, 2)]
        )
        self.layers.extend([stage(128, 4, 128), depthwise(128, 256, 256, 2), stage(256, 6, 256)])
        self.layers.extend([depthwise(256, 256, 512, 2), stage(256, 2, 256)])
        self.conv_sep = conv_block(256, 512)
        last = conv_block(512, 512, SIDE // 16, groups=512, padding=0, act=False)
        self.features = Layers(last, nn.Flatten(), nn.Linear(512, DIM, bias=False), nn.BatchNorm1d(DIM))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.features(self.conv_sep(x))


class Block(nn.Module):
    """A block under the names of arcface_torch's ViT."""

    def __init__(self, width, heads=8):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        n, t, width = x.shape
        q, k, v = self.attn.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5
        x = x + self.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, width))
        return x + self.mlp.fc2(nn.functional.relu6(self.mlp.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, width=256, depth=12, patch=9):
        super().__init__()
        tokens = (SIDE // patch) ** 2
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.blocks, self.norm = nn.ModuleList(Block(width) for _ in range(depth)), nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(tokens * width, width, bias=False), nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, DIM, bias=False), nn.BatchNorm1d(DIM, eps=2e-5),
        )  # fmt: skip

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.feature(self.norm(x).flatten(1))


def stirred(net):
    """A network whose every tensor is random, running statistics included."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                if module.affine:
                    module.bias.normal_(0, 0.1)
                    if module.weight.requires_grad:
                        module.weight.uniform_(0.5, 1.5)
            if isinstance(module, nn.PReLU):
                module.weight.uniform_(0.1, 0.4)
    return net.eval()


def write(folder, case, net, save):
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        np.savez(folder / f"{case}.npz", images=images.numpy(), outputs=net(images).numpy())
    save(net.state_dict())


def main(folder):
    torch.manual_seed(0)
    iresnet = stirred(IResNet((2, 2, 2, 2)))
    write(folder, "iresnet18", iresnet, lambda state: torch.save(state, folder / "iresnet18.pt"))
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in iresnet.state_dict().items()}}
    write(folder, "wrapped", iresnet, lambda state: torch.save(wrapped, folder / "wrapped.pth"))
    double = {
        name: value.double() if value.is_floating_point() else value for name, value in wrapped["state_dict"].items()
    }
    write(folder, "double", iresnet, lambda state: torch.save(double, folder / "double.pt"))
    half = {name: value.bfloat16() if "conv" in name else value for name, value in iresnet.state_dict().items()}
    iresnet.load_state_dict({name: value.float() for name, value in half.items()})
    write(folder, "bfloat16", iresnet, lambda state: torch.save(half, folder / "bfloat16.pt"))
    ada = stirred(AdaNet((2, 2, 2, 2)))

    def lightning(state):
        state = {**{f"model.{name}": value for name, value in state.items()}, "head.kernel": torch.randn(DIM, 7)}
        torch.save({"state_dict": state, "hyper_parameters": {"s": 64.0}, "epoch": 26}, folder / "adaface.ckpt")

    write(folder, "adaface", ada, lightning)
    write(folder, "adaface50", stirred(AdaNet((3, 4, 14, 3))), lambda state: torch.save(state, folder / "adaface50.pt"))
    mobile = stirred(MobileFaceNet())
    write(folder, "mobilefacenet", mobile, lambda state: torch.save(state, folder / "mobilefacenet.pt"))
    vit = stirred(ViT())
    write(folder, "vit", vit, lambda state: torch.save(state, folder / "vit.pt"))
    net = {f"net.{name}": value for name, value in vit.state_dict().items()}
    write(folder, "cvlface", vit, lambda state: torch.save(net, folder / "cvlface.pt"))
    from safetensors.torch import save_file

    write(folder, "safetensors", vit, lambda state: save_file(state, str(folder / "safetensors.safetensors")))
    write_onnx(folder / "iresnet18.onnx", iresnet)
    write_states(folder / "states")


def write_onnx(path, net):
    """The network of iresnet18.pt as ONNX, under the names of its tensors."""
    if importlib.util.find_spec("onnx") is None:
        return
    net.load_state_dict(torch.load(path.with_suffix(".pt")))
    keep = torch.onnx.TrainingMode.PRESERVE
    options = {"training": keep, "do_constant_folding": False, "dynamo": False}
    torch.onnx.export(net.eval(), torch.randn(1, 3, SIDE, SIDE), path, **options)
    torch.onnx.export(net.eval(), torch.randn(1, 3, SIDE, SIDE), path.with_name("folded.onnx"), dynamo=False)


def write_states(folder, classes=10, ranks=4):
    """What arcface_torch saves of four ranks: each has the network, its class centers and an optimizer of both."""
    folder.mkdir()
    net = nn.Module()
    net.conv, net.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 8 * 8, 16)
    centers, velocities = [], []
    for rank in range(ranks):
        head = nn.Module()
        head.weight = nn.Parameter(torch.randn(classes // ranks + (rank < classes % ranks), 16) * 0.01)
        groups = [{"params": net.parameters()}, {"params": head.parameters()}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=5e-4)
        for parameter in [*net.parameters(), *head.parameters()]:
            torch.manual_seed(parameter.numel() + len(centers) * (parameter is head.weight))
            parameter.grad = torch.randn_like(parameter)
        kept = {name: value.clone() for name, value in net.state_dict().items()}
        optimizer.step()
        state = {"epoch": 2, "global_step": 10, "state_dict_backbone": net.state_dict()}
        scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer)
        state.update(state_dict_softmax_fc=head.state_dict(), state_optimizer=optimizer.state_dict())
        torch.save({**state, "state_lr_scheduler": scheduler.state_dict()}, folder / f"checkpoint_gpu_{rank}.pt")
        centers.append(head.weight.detach().clone().numpy())
        velocities.append(optimizer.state[head.weight]["momentum_buffer"].clone().numpy())
        if rank == 0:
            held = {name: value.clone().numpy() for name, value in net.state_dict().items()}
            held.update(
                (f"{name}:velocity", optimizer.state[value]["momentum_buffer"].clone().numpy())
                for name, value in net.named_parameters()
            )
        net.load_state_dict(kept)
    np.savez(folder / "held.npz", weight=np.concatenate(centers), velocity=np.concatenate(velocities), **held)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
