"""Backbones: images [N, 3, H, W] -> embeddings [N, D].

`base_model` holds the contract of a backbone, `registry` finds one by name, and each other module holds one family.
The built-in ones are registered here, by where to import them from, because Paddle takes a second to import.
"""

from plsc.models.registry import register_backbone

register_backbone("ResNet50", "plsc.models.resnet:ResNet50")
register_backbone("ResNet101", "plsc.models.resnet:ResNet101")
register_backbone("ResNet152", "plsc.models.resnet:ResNet152")
register_backbone("ResNetTiny", "plsc.models.tiny:ResNetTiny")
