"""Lets ``python -m leafembed`` do what ``leaf`` does."""

import sys

from leafembed.cli import main

sys.exit(main())
