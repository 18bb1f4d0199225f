"""`python -m asap_adapters.cli`."""

import sys

from asap_adapters.cli import main

sys.exit(main())
