"""The models that INFNet is compared with: `Tokens` in, logits_BT out, one file a family."""
