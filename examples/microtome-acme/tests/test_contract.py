"""Everything that an encoder promises, tested by microtome's own kit."""

from typing import ClassVar

import microtome_acme

from microtome.testing import EncoderContract


class TestAcme(EncoderContract):
    plugin = "acme"
    package = microtome_acme


class TestAcmeEvened(EncoderContract):
    plugin = "acme"
    package = microtome_acme
    options: ClassVar = {"power": 0.5}
