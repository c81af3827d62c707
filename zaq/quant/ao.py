"""What is taken from torch.ao.quantization, which is to leave torch: torchao has classes of the same names."""

try:
    from torch.ao.quantization import FakeQuantizeBase, ObserverBase
except ImportError:  # a torch without it
    from torchao.quantization.pt2e import FakeQuantizeBase, ObserverBase  # type: ignore[import-not-found,no-redef]

__all__ = ["FakeQuantizeBase", "ObserverBase"]
