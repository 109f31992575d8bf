"""Peak speed of the devices that are here."""

import jax

from jebm.planning.topology import CHIPS

__all__ = ["peak"]

KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e",
    "TPU v6e": "v6e", "NVIDIA A100-SXM4-40GB": "a100", "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}  # fmt: skip


def peak(device: jax.Device) -> float | None:
    """Operations a second of a device on bfloat16, from its maker's data sheet; None for one that is not known."""
    chip = CHIPS.get(KINDS.get(device.device_kind, ""))  # type: ignore[call-overload]
    return None if chip is None else float(chip.peak["bfloat16"])
