"""Lets a torchvision that was built for a GPU be imported beside a CPU build of PyTorch. Only for the tests.

PyPI's torchvision registers what it computes with its compiled operators, which such a PyTorch cannot load, and fails
at import. Declaring two of them first, without a way to compute them, lets everything else of it work. The Makefile
puts this file, and a `.pth` file that imports it whenever Python starts, into the environment of the tests.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec


class _DeclareFirst(MetaPathFinder):
    """Finds nothing; notices when torchvision is looked for."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None:
                self.library = torch.library.Library("torchvision", "DEF")
                for operator in ("nms", "qnms"):
                    self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                _kept.append(self)
        return None


_kept: list[_DeclareFirst] = []  # an operator is declared for as long as its library lives
sys.meta_path.insert(0, _DeclareFirst())
