"""A microtome plugin: the encoder ``acme``."""

from collections.abc import Iterable
from dataclasses import dataclass

from microtome.plugin import EncoderCard, EncoderSpec, hookimpl, option

CARD = EncoderCard(dim=48, pooling="16 bins of each channel", licence="Apache-2.0")


@dataclass
class AcmeConfig:
    """Options of ``encoder=acme``."""

    power: float = option(1.0, help="Exponent of the bins' shares; 0.5 evens them out.")


@hookimpl
def microtome_encoders() -> Iterable[EncoderSpec]:
    """Register the encoder; its code is imported when it is chosen."""
    yield EncoderSpec(
        name="acme",
        target="microtome_acme.model:AcmeEncoder",
        summary="Colour histograms",
        config=AcmeConfig,
        card=CARD,
    )
