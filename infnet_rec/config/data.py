"""Which examples a run sees."""

from pathlib import Path
from typing import Literal

from infnet_rec.config.ranges import Count
from infnet_rec.config.toml import StrictModel

Grouping = Literal["behaviour", "sequence", "all"]


class DataConfig(StrictModel):
    """Which examples, and how much of each.

    Attributes:
        store: folder that `infnet-rec data build` made, or the URL of one (s3://, gs://, https://...), which is fetched
            once a machine.
        manifest: the manifest of such a store, a JSON file, which stands in for it in `infnet-rec plan` as long as the
            store itself is not there; nothing else reads it.
        profile: which of the store's profiles (features and histories) to use; "all" is always there.
        sequence_length: newest events of each behaviour that an example sees.
        sequence_groups: which sequences share a proxy token: those of one behaviour, none (one proxy a sequence), all.
        read_ahead: batches gathered in advance.
        loader_threads: batches gathered at the same time.
        block_examples: neighbours in the store that stay together in the first shuffle, so that reads stay local on
            disk.
        buffer_blocks: blocks whose examples are then shuffled; 8 bytes an example, four buffers at a time.
    """

    store: str
    manifest: Path | None = None
    profile: str = "all"
    sequence_length: Count = 50
    sequence_groups: Grouping = "behaviour"
    read_ahead: Count = 4
    loader_threads: Count = 1
    block_examples: Count = 4_096
    buffer_blocks: Count = 512
