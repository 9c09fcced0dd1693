"""What the live comparisons need before they can import timm."""

import importlib
import sys
from types import ModuleType

import pytest


@pytest.fixture(scope='session')
def timm() -> ModuleType:
    """timm, which imports torchvision, which on PyPI is built against CUDA.

    Beside a CPU build of torch that torchvision cannot load its compiled operators, and stops at describing two of
    them to torch. timm's ViT calls neither, so their bare signatures are registered; a call would still be an error.
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
        for name in ('nms', 'qnms'):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        importlib.import_module('torchvision')
        sys.modules['torchvision'].registered_by_tests = library  # its end would take the signatures back
    return importlib.import_module('timm')
