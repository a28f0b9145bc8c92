"""Make waiting threads sleep. Imported by every command before torch, whose OpenMP reads this once.

By default OpenMP's threads spin for a while at the end of each parallel loop. With a core for every
thread that saves some time; where other programs want the cores, too, a spinning thread keeps the
one that it waits for from running (docs/speed.md has both, measured). A setting of one's own wins.
"""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
