"""Raw files in the format of KuaiRand-Pure."""
