"""The only room that speaks TorchRec distributed: world, plan, sharded model, fused optimizers."""
