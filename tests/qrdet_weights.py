"""`python qrdet_weights.py SIZE FILE`: weights in the shape of QRDet's, without its training.

Runs in the environment of the qreader package. The net is a fresh YOLOv8-seg of one class, whose last layers
are set so that it finds large boxes in every picture, sure of each, with all of the box as their mask: in a
picture with one code in its middle, that code is in one of them.
"""

from __future__ import annotations

import sys

import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import SegmentationModel


def main(size: str, file: str) -> None:
    net = SegmentationModel(f"yolov8{size}-seg.yaml", nc=1, verbose=False)
    with torch.no_grad():
        _see_large_boxes(net.model[-1])
    yolo = YOLO(f"yolov8{size}-seg.yaml", task="segment")
    net.names, net.task, net.args = {0: "qr"}, "segment", dict(yolo.overrides)
    yolo.model = net
    yolo.save(file)


def _see_large_boxes(head: torch.nn.Module) -> None:
    """Only by the coarsest of the three scales, whose boxes reach 480 pixels to every side."""
    scales = list(zip(head.cv2, head.cv3, head.cv4, strict=True))
    for box, score, mask in scales:
        for layer in (box[-1], score[-1], mask[-1]):
            layer.weight.zero_()
        box[-1].bias.zero_().view(4, 16)[:, -1] = 20
        score[-1].bias.fill_(3 if score is scales[-1][1] else -9)
        mask[-1].bias.fill_(1)
    head.proto.cv3.conv.weight.zero_()
    head.proto.cv3.bn.bias.fill_(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
