"""`python -m anomaly_vlm.cli`."""

import sys

from anomaly_vlm.cli import main

sys.exit(main())
