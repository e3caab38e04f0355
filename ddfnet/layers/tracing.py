"""How the layers look to torch.fx and TorchScript."""

from typing import Any

from torch import Tensor, fx, nn


class TracedAsLeaf(nn.Module):
    """Base of layers that torch.fx takes as a whole, as it takes `nn.Conv2d`: one node that calls the module, whatever
    tracer it is (timm's, torchvision's). What they do depends on dtype, device and size, which a trace does not know.

    TorchScript cannot compile the operators; it is told so in a sentence.
    """

    def traced(self, x: Tensor, *others: Tensor | None) -> Any:
        """For the beginning of `forward`: the node that stands for this layer if torch.fx traces, None otherwise."""
        if not isinstance(x, fx.Proxy):
            return None
        tracer: Any = x.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (x, *others), {})

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            f"{type(self).__name__} cannot be compiled by TorchScript (torch.jit.script): use torch.export, as "
            "scripts/export.py does, or torch.compile"
        )
