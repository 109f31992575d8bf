"""Plans: what a run would need and do on devices that need not be here, read from programs compiled for them."""

from jebm.planning.programs import Plan as Plan
from jebm.planning.programs import Program as Program
from jebm.planning.programs import plan as plan
from jebm.planning.topology import topology as topology
