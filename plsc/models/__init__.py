"""Backbones: images [N, 3, H, W] -> embeddings [N, D].

`base_model` holds the contract of a backbone, `registry` finds one by name, and each other module holds one family.
The built-in ones are registered here, by where to import them from, because Paddle takes a second to import.
"""

from plsc.models.registry import register_backbone

for _depth in (18, 34, 50, 100, 200):
    register_backbone(f"IResNet{_depth}", f"plsc.models.iresnet:IResNet{_depth}")
register_backbone("MobileFaceNet", "plsc.models.mobilefacenet:MobileFaceNet")
for _letter, _size in (("T", "Tiny"), ("S", "Small"), ("B", "Base"), ("L", "Large")):
    register_backbone(f"ViT-{_letter}", f"plsc.models.vit:ViT{_size}")
for _size in ("XXS", "XS", "S", "Base"):
    register_backbone(f"EdgeFace-{_size}", f"plsc.models.edgeface:EdgeFace{_size}")
register_backbone("ResNet50", "plsc.models.resnet:ResNet50")
register_backbone("ResNet101", "plsc.models.resnet:ResNet101")
register_backbone("ResNet152", "plsc.models.resnet:ResNet152")
register_backbone("ResNetTiny", "plsc.models.tiny:ResNetTiny")
