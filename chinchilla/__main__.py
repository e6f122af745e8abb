"""`python -m chinchilla`."""

import sys

from chinchilla.cli import main

sys.exit(main())
