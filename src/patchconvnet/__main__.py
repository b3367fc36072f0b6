"""`python -m patchconvnet`."""

import sys

from patchconvnet.cli import main

sys.exit(main())
