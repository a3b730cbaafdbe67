"""`python -m infnet_rec.cli`, for torchrun and for machines without the script."""

from infnet_rec.cli import main

main()
