"""Restoration with a trained run: its prior, the tasks by name, pictures in and out."""

import dataclasses
from typing import Literal, get_args

from jebm import paths
from jebm.errors import ConfigError
from jebm.restoration import operators
from jebm.restoration.images import read_mask
from jebm.restoration.operators import Operator

__all__ = ["TASKS", "Task"]

TaskName = Literal["inpaint", "superres", "colorize", "deblur", "compressed"]
TASKS: tuple[str, ...] = get_args(TaskName)


@dataclasses.dataclass(frozen=True)
class Task:
    """A degradation by name.

    Attributes:
        name: one of `TASKS`.
        mask: of ``inpaint``: ``"box"`` (the central square), ``"random"``, or a picture's path: white is known.
        factor: of ``superres``.
        downsampling: of ``superres``: ``"average"`` or ``"bicubic"``.
        kernel: of ``deblur``: ``"gaussian"`` (5 taps, deviation 10), ``"uniform"`` (9 taps), or ``"anisotropic"``
            (9 taps, deviations 20 along the height and 1 along the width).
        fraction: of the pixels that ``inpaint`` with a random mask knows (0.5 by default), or of the coefficients
            that ``compressed`` measures (0.25 by default).
        seed: of the random mask and of the choice of coefficients.
    """

    name: TaskName
    mask: str = "box"
    factor: int = 2
    downsampling: Literal["average", "bicubic"] = "average"
    kernel: Literal["gaussian", "uniform", "anisotropic"] = "gaussian"
    fraction: float | None = None
    seed: int = 0

    def operator(self, shape: tuple[int, int, int]) -> Operator:
        """The operator for square images of ``shape``.

        Raises:
            ValueError: a setting that does not fit the shape.
            DataError: a mask that cannot be read or is of another size.
        """
        size, _, channels = shape
        if self.name == "superres":
            build = operators.average_pooling if self.downsampling == "average" else operators.bicubic
            return build(size, self.factor)
        if self.name == "colorize":
            if channels == 1:
                raise ConfigError("colorize: this model makes grey images")
            return operators.Colorization(channels)
        if self.name == "deblur":
            return operators.blur(size, *KERNELS[self.kernel])
        if self.name == "compressed":
            return operators.WalshHadamard.of(size, 0.25 if self.fraction is None else self.fraction, self.seed)
        if self.mask == "box":
            return operators.Inpainting.of(operators.box_mask(size))
        if self.mask == "random":
            fraction = 0.5 if self.fraction is None else self.fraction
            return operators.Inpainting.of(operators.random_mask(size, fraction, self.seed))
        return operators.Inpainting.of(read_mask(paths.of(self.mask), size))


KERNELS = {
    "gaussian": (operators.gaussian_kernel(10.0),),
    "uniform": (operators.uniform_kernel(),),
    "anisotropic": (operators.gaussian_kernel(20.0, 9), operators.gaussian_kernel(1.0, 9)),
}
