"""Functions that CMSIS-NN does not have, in C; a file holds those that it calls."""

from __future__ import annotations

HELPERS = {
    "brecq_mean": """
/* Means over height and width: [batch, count, channels] to [batch, channels]. */
static void brecq_mean(const int8_t *in, int8_t *out, int32_t batch, int32_t count, int32_t channels, int32_t zero_in,
                       int32_t zero_out, int32_t multiplier, int32_t shift)
{
    for (int32_t n = 0; n < batch; n++)
        for (int32_t c = 0; c < channels; c++)
        {
            int32_t sum = -zero_in * count;
            for (int32_t i = 0; i < count; i++) sum += in[(n * count + i) * channels + c];
            const int32_t code = arm_nn_requantize(sum, multiplier, shift) + zero_out;
            out[n * channels + c] = (int8_t)(code < -128 ? -128 : code > 127 ? 127 : code);
        }
}
""",
    "brecq_requantize": """
/* Codes on another grid. */
static void brecq_requantize(const int8_t *in, int8_t *out, int32_t count, int32_t zero_in, int32_t zero_out,
                             int32_t multiplier, int32_t shift)
{
    for (int32_t i = 0; i < count; i++)
    {
        const int32_t code = arm_nn_requantize(in[i] - zero_in, multiplier, shift) + zero_out;
        out[i] = (int8_t)(code < -128 ? -128 : code > 127 ? 127 : code);
    }
}
""",
    "brecq_clamp": """
static void brecq_clamp(const int8_t *in, int8_t *out, int32_t count, int8_t low, int8_t high)
{
    for (int32_t i = 0; i < count; i++) out[i] = in[i] < low ? low : in[i] > high ? high : in[i];
}
""",
    "brecq_look_up": """
/* A function of one code, by its 256 values. */
static void brecq_look_up(const int8_t *in, int8_t *out, int32_t count, const int8_t *table)
{
    for (int32_t i = 0; i < count; i++) out[i] = table[in[i] + 128];
}
""",
    "brecq_copy": """
/* Copies up to six dimensions, moving on in the source by a stride along each. */
static void brecq_copy(const int8_t *in, int8_t *out, const int32_t *shape, const int32_t *stride)
{
    for (int32_t a = 0; a < shape[0]; a++)
        for (int32_t b = 0; b < shape[1]; b++)
            for (int32_t c = 0; c < shape[2]; c++)
                for (int32_t d = 0; d < shape[3]; d++)
                    for (int32_t e = 0; e < shape[4]; e++)
                    {
                        const int8_t *row = in + a * stride[0] + b * stride[1] + c * stride[2];
                        row += d * stride[3] + e * stride[4];
                        for (int32_t f = 0; f < shape[5]; f++) *out++ = row[f * stride[5]];
                    }
}
""",
}
"""Their source, by name."""
