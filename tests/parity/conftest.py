"""Lets transformers and timm import torchvision beside a CPU build of torch, before any test module asks for them."""

import importlib
import importlib.util
import sys


def repair_torchvision() -> None:
    """Make `import torchvision` work where its compiled operators do not load.

    PyPI's torchvision is built against CUDA. Beside a CPU build of torch it cannot load its operators, and stops at
    describing two of them to torch. Their bare signatures are registered here: the ViTs compared call neither, and a
    call would still be an error. A torchvision that loads is left as it is.
    """
    import torch

    try:
        importlib.import_module('torchvision')
    except RuntimeError as error:
        if 'operator torchvision::nms does not exist' not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
            del sys.modules[name]
        library = torch.library.Library('torchvision', 'DEF')
        for operator in ('nms', 'qnms'):
            library.define(f'{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        importlib.import_module('torchvision').signatures = library  # kept: its end would take the signatures back


if all(importlib.util.find_spec(name) for name in ('torch', 'torchvision')):
    repair_torchvision()
