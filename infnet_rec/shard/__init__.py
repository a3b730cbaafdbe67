"""Names that launch scripts of earlier versions call."""
