"""torchx components."""
