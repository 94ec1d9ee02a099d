#include "arm_nnfunctions.h"
#include "arm_nnsupportfunctions.h"

static int8_t bounded(int32_t code, cmsis_nn_activation ends)
{
    return (int8_t)(code < ends.min ? ends.min : code > ends.max ? ends.max : code);
}

/* Two codes a byte, the first in the low bits. */
static int32_t weight(const int8_t *filter, int32_t index, int bits)
{
    if (bits == 8) return filter[index];
    const int32_t byte = filter[index >> 1];
    return index & 1 ? byte >> 4 : (int8_t)((uint32_t)byte << 4) >> 4;
}

static void convolve(const cmsis_nn_conv_params *params, const cmsis_nn_per_channel_quant_params *quant,
                     const cmsis_nn_dims *in, const int8_t *x, const cmsis_nn_dims *filter, const int8_t *weights,
                     const int32_t *bias, const cmsis_nn_dims *out, int8_t *y, int bits, int depthwise)
{
    const int32_t depth = depthwise ? 1 : filter->c, groups = depthwise ? in->c : in->c / filter->c;
    for (int32_t n = 0; n < in->n; n++)
        for (int32_t row = 0; row < out->h; row++)
            for (int32_t column = 0; column < out->w; column++)
                for (int32_t o = 0; o < out->c; o++)
                {
                    int32_t sum = bias[o];
                    const int32_t first = o / (out->c / groups) * depth;
                    for (int32_t i = 0; i < filter->h; i++)
                        for (int32_t j = 0; j < filter->w; j++)
                        {
                            const int32_t r = row * params->stride.h - params->padding.h + i * params->dilation.h;
                            const int32_t k = column * params->stride.w - params->padding.w + j * params->dilation.w;
                            if (r < 0 || r >= in->h || k < 0 || k >= in->w) continue;
                            for (int32_t c = 0; c < depth; c++)
                            {
                                const int32_t tap = depthwise ? (i * filter->w + j) * out->c + o
                                                              : ((o * filter->h + i) * filter->w + j) * depth + c;
                                const int32_t code = x[((n * in->h + r) * in->w + k) * in->c + first + c];
                                sum += (code + params->input_offset) * weight(weights, tap, bits);
                            }
                        }
                    const int32_t code = arm_nn_requantize(sum, quant->multiplier[o], quant->shift[o]);
                    y[((n * out->h + row) * out->w + column) * out->c + o] =
                        bounded(code + params->output_offset, params->activation);
                }
}

#define LAYER(name, type, bits, depthwise)                                                                             \
    int32_t name##_get_buffer_size(const type *params, const cmsis_nn_dims *in, const cmsis_nn_dims *filter,           \
                                   const cmsis_nn_dims *out)                                                           \
    {                                                                                                                  \
        (void)params, (void)in, (void)filter, (void)out;                                                               \
        return 0;                                                                                                      \
    }                                                                                                                  \
    arm_cmsis_nn_status name(const cmsis_nn_context *context, const type *params,                                      \
                             const cmsis_nn_per_channel_quant_params *quant, const cmsis_nn_dims *in, const int8_t *x, \
                             const cmsis_nn_dims *filter, const int8_t *weights, const cmsis_nn_dims *bias_dims,       \
                             const int32_t *bias, const cmsis_nn_dims *out, int8_t *y)                                 \
    {                                                                                                                  \
        (void)context, (void)bias_dims;                                                                                \
        const cmsis_nn_conv_params plain = {params->input_offset, params->output_offset, params->stride,               \
                                            params->padding, params->dilation, params->activation};                    \
        convolve(&plain, quant, in, x, filter, weights, bias, out, y, bits, depthwise);                                \
        return ARM_CMSIS_NN_SUCCESS;                                                                                   \
    }

LAYER(arm_convolve_wrapper_s8, cmsis_nn_conv_params, 8, 0)
LAYER(arm_convolve_wrapper_s4, cmsis_nn_conv_params, 4, 0)
LAYER(arm_depthwise_conv_wrapper_s8, cmsis_nn_dw_conv_params, 8, 1)
LAYER(arm_depthwise_conv_wrapper_s4, cmsis_nn_dw_conv_params, 4, 1)

int32_t arm_transpose_conv_s8_get_buffer_size(const cmsis_nn_transpose_conv_params *params, const cmsis_nn_dims *in,
                                              const cmsis_nn_dims *filter, const cmsis_nn_dims *out)
{
    (void)params, (void)in, (void)filter, (void)out;
    return 0;
}

int32_t arm_transpose_conv_s8_get_reverse_conv_buffer_size(const cmsis_nn_transpose_conv_params *params,
                                                           const cmsis_nn_dims *in, const cmsis_nn_dims *filter)
{
    (void)params, (void)in, (void)filter;
    return 0;
}

arm_cmsis_nn_status arm_transpose_conv_wrapper_s8(const cmsis_nn_context *context, const cmsis_nn_context *reverse,
                                                  const cmsis_nn_transpose_conv_params *params,
                                                  const cmsis_nn_per_channel_quant_params *quant,
                                                  const cmsis_nn_dims *in, const int8_t *x, const cmsis_nn_dims *filter,
                                                  const int8_t *weights, const cmsis_nn_dims *bias_dims,
                                                  const int32_t *bias, const cmsis_nn_dims *out, int8_t *y)
{
    (void)context, (void)reverse, (void)bias_dims;
    for (int32_t n = 0; n < in->n; n++)
        for (int32_t row = 0; row < out->h; row++)
            for (int32_t column = 0; column < out->w; column++)
                for (int32_t o = 0; o < out->c; o++)
                {
                    int32_t sum = bias[o];
                    for (int32_t i = 0; i < filter->h; i++)
                        for (int32_t j = 0; j < filter->w; j++)
                        {
                            const int32_t r = row + params->padding.h - i, k = column + params->padding.w - j;
                            if (r < 0 || k < 0 || r % params->stride.h || k % params->stride.w) continue;
                            if (r / params->stride.h >= in->h || k / params->stride.w >= in->w) continue;
                            const int8_t *pixel =
                                x + ((n * in->h + r / params->stride.h) * in->w + k / params->stride.w) * in->c;
                            for (int32_t c = 0; c < in->c; c++)
                                sum += (pixel[c] + params->input_offset) *
                                       weights[((o * filter->h + i) * filter->w + j) * in->c + c];
                        }
                    const int32_t code = arm_nn_requantize(sum, quant->multiplier[o], quant->shift[o]);
                    y[((n * out->h + row) * out->w + column) * out->c + o] =
                        bounded(code + params->output_offset, params->activation);
                }
    return ARM_CMSIS_NN_SUCCESS;
}

arm_cmsis_nn_status arm_max_pool_s8(const cmsis_nn_context *context, const cmsis_nn_pool_params *params,
                                    const cmsis_nn_dims *in, const int8_t *x, const cmsis_nn_dims *filter,
                                    const cmsis_nn_dims *out, int8_t *y)
{
    (void)context;
    for (int32_t n = 0; n < in->n; n++)
        for (int32_t row = 0; row < out->h; row++)
            for (int32_t column = 0; column < out->w; column++)
                for (int32_t c = 0; c < in->c; c++)
                {
                    int32_t largest = -128;
                    for (int32_t i = 0; i < filter->h; i++)
                        for (int32_t j = 0; j < filter->w; j++)
                        {
                            const int32_t r = row * params->stride.h - params->padding.h + i;
                            const int32_t k = column * params->stride.w - params->padding.w + j;
                            if (r < 0 || r >= in->h || k < 0 || k >= in->w) continue;
                            const int32_t code = x[((n * in->h + r) * in->w + k) * in->c + c];
                            largest = code > largest ? code : largest;
                        }
                    y[((n * out->h + row) * out->w + column) * in->c + c] = bounded(largest, params->activation);
                }
    return ARM_CMSIS_NN_SUCCESS;
}

arm_cmsis_nn_status arm_pad_s8(const int8_t *x, int8_t *y, const int8_t fill, const cmsis_nn_dims *in,
                               const cmsis_nn_dims *before, const cmsis_nn_dims *after)
{
    for (int32_t n = -before->n; n < in->n + after->n; n++)
        for (int32_t h = -before->h; h < in->h + after->h; h++)
            for (int32_t w = -before->w; w < in->w + after->w; w++)
                for (int32_t c = -before->c; c < in->c + after->c; c++)
                {
                    const int inside =
                        n >= 0 && n < in->n && h >= 0 && h < in->h && w >= 0 && w < in->w && c >= 0 && c < in->c;
                    *y++ = inside ? x[((n * in->h + h) * in->w + w) * in->c + c] : fill;
                }
    return ARM_CMSIS_NN_SUCCESS;
}

arm_cmsis_nn_status arm_elementwise_add_s8(const int8_t *a, const int8_t *b, const int32_t offset_1,
                                           const int32_t mult_1, const int32_t shift_1, const int32_t offset_2,
                                           const int32_t mult_2, const int32_t shift_2, const int32_t left_shift,
                                           int8_t *y, const int32_t out_offset, const int32_t out_mult,
                                           const int32_t out_shift, const int32_t low, const int32_t high,
                                           const int32_t size)
{
    const cmsis_nn_activation ends = {low, high};
    for (int32_t i = 0; i < size; i++)
    {
        const int32_t first = arm_nn_requantize((a[i] + offset_1) * (1 << left_shift), mult_1, shift_1);
        const int32_t second = arm_nn_requantize((b[i] + offset_2) * (1 << left_shift), mult_2, shift_2);
        y[i] = bounded(arm_nn_requantize(first + second, out_mult, out_shift) + out_offset, ends);
    }
    return ARM_CMSIS_NN_SUCCESS;
}

arm_cmsis_nn_status arm_elementwise_mul_s8(const int8_t *a, const int8_t *b, const int32_t offset_1,
                                           const int32_t offset_2, int8_t *y, const int32_t out_offset,
                                           const int32_t out_mult, const int32_t out_shift, const int32_t low,
                                           const int32_t high, const int32_t size)
{
    const cmsis_nn_activation ends = {low, high};
    for (int32_t i = 0; i < size; i++)
    {
        const int32_t product = (a[i] + offset_1) * (b[i] + offset_2);
        y[i] = bounded(arm_nn_requantize(product, out_mult, out_shift) + out_offset, ends);
    }
    return ARM_CMSIS_NN_SUCCESS;
}
