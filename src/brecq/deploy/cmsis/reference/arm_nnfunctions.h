/* The part of CMSIS-NN's interface that exported networks use, for hosts without CMSIS-NN: same names, same types, and
 * the arithmetic that its documentation describes, written plainly. Tests compile against it unless the environment
 * variable CMSIS_NN names a checkout of CMSIS-NN itself. */
#ifndef ARM_NNFUNCTIONS_H
#define ARM_NNFUNCTIONS_H

#include <stdint.h>

typedef enum { ARM_CMSIS_NN_SUCCESS = 0, ARM_CMSIS_NN_ARG_ERROR = -1 } arm_cmsis_nn_status;

typedef struct { void *buf; int32_t size; } cmsis_nn_context;
typedef struct { int32_t w, h; } cmsis_nn_tile;
typedef struct { int32_t min, max; } cmsis_nn_activation;
typedef struct { int32_t n, h, w, c; } cmsis_nn_dims;
typedef struct { int32_t *multiplier, *shift; } cmsis_nn_per_channel_quant_params;
typedef struct {
    int32_t input_offset, output_offset;
    cmsis_nn_tile stride, padding, dilation;
    cmsis_nn_activation activation;
} cmsis_nn_conv_params;
typedef struct {
    int32_t input_offset, output_offset;
    cmsis_nn_tile stride, padding, padding_offsets, dilation;
    cmsis_nn_activation activation;
} cmsis_nn_transpose_conv_params;
typedef struct {
    int32_t input_offset, output_offset, ch_mult;
    cmsis_nn_tile stride, padding, dilation;
    cmsis_nn_activation activation;
} cmsis_nn_dw_conv_params;
typedef struct {
    cmsis_nn_tile stride, padding;
    cmsis_nn_activation activation;
} cmsis_nn_pool_params;

#define LAYER(name, params)                                                                                            \
    int32_t name##_get_buffer_size(const params *, const cmsis_nn_dims *in, const cmsis_nn_dims *filter,               \
                                   const cmsis_nn_dims *out);                                                          \
    arm_cmsis_nn_status name(const cmsis_nn_context *, const params *, const cmsis_nn_per_channel_quant_params *,      \
                             const cmsis_nn_dims *, const int8_t *, const cmsis_nn_dims *, const int8_t *,             \
                             const cmsis_nn_dims *, const int32_t *, const cmsis_nn_dims *, int8_t *);

LAYER(arm_convolve_wrapper_s8, cmsis_nn_conv_params)
LAYER(arm_convolve_wrapper_s4, cmsis_nn_conv_params)
LAYER(arm_depthwise_conv_wrapper_s8, cmsis_nn_dw_conv_params)
LAYER(arm_depthwise_conv_wrapper_s4, cmsis_nn_dw_conv_params)
#undef LAYER

int32_t arm_transpose_conv_s8_get_buffer_size(const cmsis_nn_transpose_conv_params *, const cmsis_nn_dims *in,
                                              const cmsis_nn_dims *filter, const cmsis_nn_dims *out);
int32_t arm_transpose_conv_s8_get_reverse_conv_buffer_size(const cmsis_nn_transpose_conv_params *,
                                                           const cmsis_nn_dims *in, const cmsis_nn_dims *filter);
arm_cmsis_nn_status arm_transpose_conv_wrapper_s8(const cmsis_nn_context *, const cmsis_nn_context *,
                                                  const cmsis_nn_transpose_conv_params *,
                                                  const cmsis_nn_per_channel_quant_params *, const cmsis_nn_dims *,
                                                  const int8_t *, const cmsis_nn_dims *, const int8_t *,
                                                  const cmsis_nn_dims *, const int32_t *, const cmsis_nn_dims *,
                                                  int8_t *);
arm_cmsis_nn_status arm_max_pool_s8(const cmsis_nn_context *, const cmsis_nn_pool_params *, const cmsis_nn_dims *,
                                    const int8_t *, const cmsis_nn_dims *, const cmsis_nn_dims *, int8_t *);
arm_cmsis_nn_status arm_pad_s8(const int8_t *, int8_t *, const int8_t, const cmsis_nn_dims *, const cmsis_nn_dims *,
                               const cmsis_nn_dims *);
arm_cmsis_nn_status arm_elementwise_add_s8(const int8_t *, const int8_t *, const int32_t offset_1, const int32_t mult_1,
                                           const int32_t shift_1, const int32_t offset_2, const int32_t mult_2,
                                           const int32_t shift_2, const int32_t left_shift, int8_t *,
                                           const int32_t out_offset, const int32_t out_mult, const int32_t out_shift,
                                           const int32_t low, const int32_t high, const int32_t size);
arm_cmsis_nn_status arm_elementwise_mul_s8(const int8_t *, const int8_t *, const int32_t offset_1,
                                           const int32_t offset_2, int8_t *, const int32_t out_offset,
                                           const int32_t out_mult, const int32_t out_shift, const int32_t low,
                                           const int32_t high, const int32_t size);

#endif
