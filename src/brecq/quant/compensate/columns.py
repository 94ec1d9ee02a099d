"""Column after column of a block of columns, where each decision changes what the later ones see.

    rounding: code of w_j,        error e_j = (w_j − q_j)/M_jj,  later columns −= e_j·M_j
    descent:  code of q_j + l_j/M_jj,    step e_j = change of q_j,  later columns −= e_j·M_j

On the CPU each column is a handful of vector operations. On CUDA these would be a handful of launches, thousands of
times for nothing but a few rows each: there, one kernel takes a tile of rows through all columns of the block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brecq.quant.affine import IntRange
from brecq.quant.fusion import backend, give_up


def decide(
    local: Tensor, matrix: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange, codes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The codes of a block of columns, and e of each.

    Args:
        local: [G, R, W], what the columns see before; of a descent, the residual. matrix: M, [G, W, W].
        scale, zero_point: [G, R, W]. codes: [G, R, W], of a descent: those before. All float64.

    Returns:
        Codes and e, float64 [G, R, W].
    """
    if local.is_cuda and backend(local.device) == "compiled":
        try:
            from brecq.quant.compensate.columns_cuda import decide_on_device

            return decide_on_device(local, matrix, scale, zero_point, range, codes)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            give_up("cuda", error)
    return _one_by_one(local.clone(), matrix, scale, zero_point, range, codes)


def _one_by_one(
    local: Tensor, matrix: Tensor, scale: Tensor, zero_point: Tensor, range: IntRange, codes: Tensor | None
) -> tuple[Tensor, Tensor]:
    decided, errors = torch.empty_like(local), torch.empty_like(local)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    for j, (s, z) in enumerate(zip(scale.unbind(2), zero_point.unbind(2), strict=True)):
        value = local[:, :, j]
        if codes is not None:
            before = (codes[:, :, j] - z) * s
            value = before + value / diagonal[:, j, None]
        code = ((value / s).round() + z).clamp(range.low, range.high)
        error = (value - (code - z) * s) / diagonal[:, j, None] if codes is None else (code - codes[:, :, j]) * s
        decided[:, :, j], errors[:, :, j] = code, error
        local[:, :, j + 1 :] -= error[:, :, None] * matrix[:, None, j, j + 1 :]
    return decided, errors
