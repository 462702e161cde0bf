"""To be imported before torch, which reads this once, when it loads: idle OpenMP threads sleep instead of spinning.

Beside another job on the same cores an update otherwise waits seconds for a thread that spins on a core it needs.
"""

import os

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
