// The table `neon_dotprod`: SDOT for the matrix products, NEON for everything else.
#include <type_traits>

#include "native/kernels/cpu_features.h"
#include "native/kernels/tables/tables.h"

namespace awqe {

std::remove_pointer_t<GemvFunction> gemv_s8d_u2g_neon_dotprod, gemv_s8d_u3g_neon_dotprod,
    gemv_s8d_u4g_neon_dotprod, gemv_s8d_u5g_neon_dotprod, gemv_s8d_u6g_neon_dotprod,
    gemv_s8d_u8g_neon_dotprod;
std::remove_pointer_t<GemmFunction> gemm_s8d_u2g_neon_dotprod, gemm_s8d_u3g_neon_dotprod,
    gemm_s8d_u4g_neon_dotprod, gemm_s8d_u5g_neon_dotprod, gemm_s8d_u6g_neon_dotprod,
    gemm_s8d_u8g_neon_dotprod;
std::remove_pointer_t<QuantizeActFunction> quantize_act_s8d_neon;
std::remove_pointer_t<RmsNormFunction> rms_norm_f32_neon;
std::remove_pointer_t<LayerNormFunction> layer_norm_f32_neon;
std::remove_pointer_t<RopeFunction> rope_f32_neon;
std::remove_pointer_t<StoreHalfFunction> store_half_f16_neon;
std::remove_pointer_t<AttentionF16Function> attention_f16_neon;
std::remove_pointer_t<AttentionS8Function> attention_s8_neon;
std::remove_pointer_t<SoftCapFunction> soft_cap_f32_neon;
std::remove_pointer_t<ActivationFunction> silu_f32_neon, gelu_f32_neon, gelu_tanh_f32_neon,
    relu_f32_neon, quick_gelu_f32_neon;
std::remove_pointer_t<EmbeddingFunction> embedding_ug_reference;
std::remove_pointer_t<RouterFunction> router_f32_neon;
std::remove_pointer_t<SoftmaxFunction> softmax_f32_neon;

const KernelTable kTableNeonDotprod = {
    .name = "neon_dotprod",
    .required = kCpuNeon | kCpuDotprod,
    .gemv = {gemv_s8d_u2g_neon_dotprod, gemv_s8d_u3g_neon_dotprod, gemv_s8d_u4g_neon_dotprod,
             gemv_s8d_u5g_neon_dotprod, gemv_s8d_u6g_neon_dotprod, gemv_s8d_u8g_neon_dotprod},
    .gemm = {gemm_s8d_u2g_neon_dotprod, gemm_s8d_u3g_neon_dotprod, gemm_s8d_u4g_neon_dotprod,
             gemm_s8d_u5g_neon_dotprod, gemm_s8d_u6g_neon_dotprod, gemm_s8d_u8g_neon_dotprod},
    .quantize_act = quantize_act_s8d_neon,
    .rms_norm = rms_norm_f32_neon,
    .layer_norm = layer_norm_f32_neon,
    .rope = rope_f32_neon,
    .store_half = store_half_f16_neon,
    .attention_f16 = attention_f16_neon,
    .attention_s8 = attention_s8_neon,
    .soft_cap = soft_cap_f32_neon,
    .activation = {silu_f32_neon, gelu_f32_neon, gelu_tanh_f32_neon, relu_f32_neon,
                   quick_gelu_f32_neon},
    .embedding = embedding_ug_reference,
    .router = router_f32_neon,
    .softmax = softmax_f32_neon,
};

}  // namespace awqe
