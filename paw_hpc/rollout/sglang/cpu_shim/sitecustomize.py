"""Read by Python at the start of an SGLang server on a CPU (the folder of this file is put on its
PYTHONPATH).

torchvision from PyPI is linked against CUDA. Beside a CPU build of torch its operators are not registered,
and importing it fails where it attaches shape functions to two of them. SGLang imports torchvision and never
runs these operators, so declaring their names is all it takes.
"""

import torch

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# A library's declarations live as long as the object: it is kept in the module.
_DECLARED = torch.library.Library("torchvision", "FRAGMENT")
for _operator in ("nms", "qnms"):
    _DECLARED.define(_operator + _BOXES)
