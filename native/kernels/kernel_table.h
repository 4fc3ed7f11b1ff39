// One table per instruction set: every operation of decoders and vision towers as a function
// pointer. All tables read the same bytes and give the same bits (native/ARITHMETIC.md). Owns the
// signatures; the contract of each operation stands in its own header.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "native/kernels/activation/activation_f32.h"
#include "native/kernels/attention/attention_f16.h"
#include "native/kernels/attention/attention_s8.h"
#include "native/kernels/embedding/embedding_ug.h"
#include "native/kernels/gemm/gemm_ug.h"
#include "native/kernels/gemv/gemv_ug.h"
#include "native/kernels/norm/layer_norm_f32.h"
#include "native/kernels/norm/rms_norm_f32.h"
#include "native/kernels/quantize_act/quantize_act_s8d.h"
#include "native/kernels/rope/rope_f32.h"
#include "native/kernels/router/router_f32.h"
#include "native/kernels/router/softmax_f32.h"
#include "native/kernels/soft_cap/soft_cap_f32.h"

namespace awqe {

// One function per bit width, in the order of the widths.
template <class Function>
struct ByBits {
    Function u2, u3, u4, u5, u6, u8;

    // bits: what the reader lets through (FORMAT.md, section 4, rule 10).
    Function operator[](uint32_t bits) const {
        switch (bits) {
            case 2:
                return u2;
            case 3:
                return u3;
            case 4:
                return u4;
            case 5:
                return u5;
            case 6:
                return u6;
            default:
                return u8;
        }
    }
};

struct ByActivation {
    ActivationFunction silu, gelu, gelu_tanh, relu, quick_gelu;

    ActivationFunction operator[](Activation activation) const {
        switch (activation) {
            case Activation::kSilu:
                return silu;
            case Activation::kGelu:
                return gelu;
            case Activation::kGeluTanh:
                return gelu_tanh;
            case Activation::kQuickGelu:
                return quick_gelu;
            default:
                return relu;
        }
    }
};

struct KernelTable {
    const char* name;
    uint32_t required;  // cpu_features.h mask: all of them must be there
    ByBits<GemvFunction> gemv;
    ByBits<GemmFunction> gemm;
    QuantizeActFunction quantize_act;
    RmsNormFunction rms_norm;
    LayerNormFunction layer_norm;
    RopeFunction rope;
    StoreHalfFunction store_half;
    AttentionF16Function attention_f16;
    AttentionS8Function attention_s8;
    SoftCapFunction soft_cap;
    ByActivation activation;
    EmbeddingFunction embedding;
    RouterFunction router;
    SoftmaxFunction softmax;
};

}  // namespace awqe
