"""The dataset: raw logs, the store on disk, the order of its examples, and the batches made of them."""
