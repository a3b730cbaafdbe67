"""Raw files in the format of Tenrec QB-Video."""
