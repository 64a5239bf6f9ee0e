"""The parser of the verbs' words."""

from __future__ import annotations

import argparse
from typing import NoReturn

from microtome.errors import ConfigError


class VerbParser(argparse.ArgumentParser):
    """Parses what stands behind a verb; what does not fit is told in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Refuse a line.

        Raises:
            ConfigError: Always.
        """
        verb = self.prog.removeprefix("microtome ")
        raise ConfigError(f"{verb}: {message}; {self.prog} --help shows what there is.")
