/* Every format's header; with their vector parts where a vocabulary (simd/<set>.h) came first. */
#ifndef RT_QUANT_ALL_H
#define RT_QUANT_ALL_H
#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/q8_0.h"
#endif
