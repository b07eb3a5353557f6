"""For a kernel started with IPYTHONDIR=tests/data/fakegpu: device "auto" of a chapter is the fake device."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

import fake_device

fake_device.install()

from smlmtut import notebook  # noqa: E402  after the device is there

notebook._device = lambda name: fake_device.DEVICE
