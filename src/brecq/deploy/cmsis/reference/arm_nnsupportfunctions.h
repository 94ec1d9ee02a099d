#ifndef ARM_NNSUPPORTFUNCTIONS_H
#define ARM_NNSUPPORTFUNCTIONS_H

#include <stdint.h>

/* value * multiplier * 2^(shift - 31), rounded after the product's high half (halves up) and after the shift (halves
 * away from zero). */
static inline int32_t arm_nn_requantize(const int32_t value, const int32_t multiplier, const int32_t shift)
{
    const int64_t shifted = (int64_t)value * ((int64_t)1 << (shift > 0 ? shift : 0));
    const int64_t high = (shifted * multiplier + ((int64_t)1 << 30)) >> 31;
    if (shift >= 0) return (int32_t)high;
    const int64_t mask = ((int64_t)1 << -shift) - 1;
    return (int32_t)((high >> -shift) + ((high & mask) > (mask >> 1) + (high < 0)));
}

#endif
