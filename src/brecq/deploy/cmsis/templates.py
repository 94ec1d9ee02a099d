"""The C that surrounds a network. Braces of C are doubled, names in single braces are filled in."""

from __future__ import annotations

HEADER = """/* {origin} */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

/* Bytes of working memory, aligned to 16, that {name}_run takes. */
#define {upper}_ARENA_SIZE {arena}

{defines}

/* Computes codes from codes; returns 0 unless a kernel refuses its arguments. */
int {name}_run({parameters}, int8_t *arena);

#endif
"""

NETWORK = """/* {origin} */
#include "{name}.h"

#include <string.h>

#include "arm_nnfunctions.h"
#include "arm_nnsupportfunctions.h"

{constants}{helpers}
int {name}_run({parameters}, int8_t *arena)
{{
    const cmsis_nn_context context = {{arena + {start}, {scratch}}};
    (void)context;
{body}
    return 0;
}}
"""

MAIN = """/* {origin} */
/* Runs the network on a host: float32 numbers in by standard input, sample after sample, others out by standard
 * output. */
#include <math.h>
#include <stdio.h>

#include "{name}.h"

static _Alignas(16) int8_t arena[{upper}_ARENA_SIZE];
{buffers}

static int read_codes(int8_t *codes, int count, float scale, int zero_point)
{{
    for (int i = 0; i < count; i++)
    {{
        float number;
        if (fread(&number, sizeof number, 1, stdin) != 1) return 0;
        const float code = roundf(number / scale) + (float)zero_point;
        codes[i] = (int8_t)(code < -128 ? -128 : code > 127 ? 127 : code);
    }}
    return 1;
}}

static void write_numbers(const int8_t *codes, int count, float scale, int zero_point)
{{
    for (int i = 0; i < count; i++)
    {{
        const float number = (float)(codes[i] - zero_point) * scale;
        fwrite(&number, sizeof number, 1, stdout);
    }}
}}

int main(void)
{{
    for (;;)
    {{
{reads}
        if ({name}_run({arguments}, arena)) return 1;
{writes}
    }}
}}
"""
