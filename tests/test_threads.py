"""Every command has OpenMP's waiting threads sleep, before torch reads it, and starts quickly."""
import os
import subprocess
import sys

import pytest

from helpers import ROOT

COMMANDS = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts)
                  for folder in (".", "baselines", "support", "tools")
                  for path in (ROOT / folder).glob("*.py")
                  if '__name__ == "__main__"' in path.read_text())
ASK = """
import importlib, os, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Finder())
importlib.import_module(sys.argv[1])
"""


def policy(module, **environment):
    """What torch would find in its environment when `module` imports it."""
    own = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    return subprocess.run(
        [sys.executable, "-c", ASK, module], capture_output=True, text=True, check=True,
        env={**own, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **environment}).stdout.strip()


@pytest.mark.parametrize("module", [*COMMANDS, "conftest"])
def test_threads_that_wait_sleep_in_every_command_and_in_the_tests(module):
    assert policy(module) == "PASSIVE"


def test_a_users_own_setting_wins():
    assert policy("train", OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"


def test_a_fill_is_begun_without_imports_that_take_long():
    """sympy takes a second, scipy and scikit-image a quarter; much that looks harmless has them."""
    ask = """
import sys
import inpaint
from support.photographs import Holes, Photograph
network, photograph = inpaint.load_weights(), Photograph(inpaint.astronaut())
(_, hole), = Holes("irregular", 64).of("astronaut", None, photograph.rgb.shape[:2])
inpaint.plan(hole, 64)
print({"sympy", "scipy", "skimage"} & {*sys.modules})"""
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout.strip()
    assert said == "set()"
