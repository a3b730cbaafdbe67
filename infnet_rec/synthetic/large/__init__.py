"""Raw files in the formats of KuaiRand-27K and -1K, in constant memory."""
