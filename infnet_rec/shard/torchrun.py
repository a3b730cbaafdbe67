"""`python -m infnet_rec.shard.torchrun`, as launch scripts of earlier versions say it."""

import runpy

if __name__ == "__main__":
    runpy.run_module("infnet_rec.launcher.torchrun", run_name="__main__")
