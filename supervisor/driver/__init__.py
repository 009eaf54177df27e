"""The only shell: facts go to the core, its orders are carried out, what comes of them is posted as facts."""

from supervisor.driver.driver import Driver
from supervisor.driver.lease import Lease

__all__ = ["Driver", "Lease"]
