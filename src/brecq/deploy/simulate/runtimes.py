"""The kernels of runtimes by name."""

from __future__ import annotations

from brecq.deploy.simulate.arithmetic import FixedPoint, LiteRT, OnnxRuntime
from brecq.deploy.simulate.wide import LiteRT16, Reference16
from brecq.errors import ConfigError

_NARROW = {each.__name__: each for each in (OnnxRuntime, LiteRT, FixedPoint)}
_WIDE: dict[str, type[OnnxRuntime]] = {"LiteRT": LiteRT16, "FixedPoint": Reference16}


def find(runtime: str, *, wide: bool = False) -> OnnxRuntime:
    """The kernels of a runtime.

    Args:
        wide: for 16-bit activations, where it has others for them.

    Raises:
        ConfigError: there are none of this name.
    """
    if runtime not in _NARROW:
        raise ConfigError(f"the runtime is {runtime!r}; choose one of {', '.join(_NARROW)}")
    return _WIDE[runtime]() if wide and runtime in _WIDE else _NARROW[runtime]()
