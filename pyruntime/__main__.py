"""`python -m pyruntime` is the `pyruntime` command."""
import sys

from .cli import main

sys.exit(main())
