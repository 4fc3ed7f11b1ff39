// The table `reference`: plain loops for any CPU, the executable form of native/ARITHMETIC.md.
#include <type_traits>

#include "native/kernels/tables/tables.h"

namespace awqe {

std::remove_pointer_t<GemvFunction> gemv_s8d_u2g_reference, gemv_s8d_u3g_reference,
    gemv_s8d_u4g_reference, gemv_s8d_u5g_reference, gemv_s8d_u6g_reference, gemv_s8d_u8g_reference;
std::remove_pointer_t<GemmFunction> gemm_s8d_u2g_reference, gemm_s8d_u3g_reference,
    gemm_s8d_u4g_reference, gemm_s8d_u5g_reference, gemm_s8d_u6g_reference, gemm_s8d_u8g_reference;
std::remove_pointer_t<QuantizeActFunction> quantize_act_s8d_reference;
std::remove_pointer_t<RmsNormFunction> rms_norm_f32_reference;
std::remove_pointer_t<LayerNormFunction> layer_norm_f32_reference;
std::remove_pointer_t<RopeFunction> rope_f32_reference;
std::remove_pointer_t<StoreHalfFunction> store_half_f16_reference;
std::remove_pointer_t<AttentionF16Function> attention_f16_reference;
std::remove_pointer_t<AttentionS8Function> attention_s8_reference;
std::remove_pointer_t<SoftCapFunction> soft_cap_f32_reference;
std::remove_pointer_t<ActivationFunction> silu_f32_reference, gelu_f32_reference,
    gelu_tanh_f32_reference, relu_f32_reference, quick_gelu_f32_reference;
std::remove_pointer_t<EmbeddingFunction> embedding_ug_reference;
std::remove_pointer_t<RouterFunction> router_f32_reference;
std::remove_pointer_t<SoftmaxFunction> softmax_f32_reference;

const KernelTable kTableReference = {
    .name = "reference",
    .required = 0,
    .gemv = {gemv_s8d_u2g_reference, gemv_s8d_u3g_reference, gemv_s8d_u4g_reference,
             gemv_s8d_u5g_reference, gemv_s8d_u6g_reference, gemv_s8d_u8g_reference},
    .gemm = {gemm_s8d_u2g_reference, gemm_s8d_u3g_reference, gemm_s8d_u4g_reference,
             gemm_s8d_u5g_reference, gemm_s8d_u6g_reference, gemm_s8d_u8g_reference},
    .quantize_act = quantize_act_s8d_reference,
    .rms_norm = rms_norm_f32_reference,
    .layer_norm = layer_norm_f32_reference,
    .rope = rope_f32_reference,
    .store_half = store_half_f16_reference,
    .attention_f16 = attention_f16_reference,
    .attention_s8 = attention_s8_reference,
    .soft_cap = soft_cap_f32_reference,
    .activation = {silu_f32_reference, gelu_f32_reference, gelu_tanh_f32_reference,
                   relu_f32_reference, quick_gelu_f32_reference},
    .embedding = embedding_ug_reference,
    .router = router_f32_reference,
    .softmax = softmax_f32_reference,
};

}  // namespace awqe
