"""`python -m gradflow`, which is what torchrun starts."""

import sys

from gradflow.cli import main

sys.exit(main())
