// The table `avx2`: AVX2, FMA and F16C.
#include <type_traits>

#include "native/kernels/cpu_features.h"
#include "native/kernels/tables/tables.h"

namespace awqe {

std::remove_pointer_t<GemvFunction> gemv_s8d_u2g_avx2, gemv_s8d_u3g_avx2, gemv_s8d_u4g_avx2,
    gemv_s8d_u5g_avx2, gemv_s8d_u6g_avx2, gemv_s8d_u8g_avx2;
std::remove_pointer_t<GemmFunction> gemm_s8d_u2g_avx2, gemm_s8d_u3g_avx2, gemm_s8d_u4g_avx2,
    gemm_s8d_u5g_avx2, gemm_s8d_u6g_avx2, gemm_s8d_u8g_avx2;
std::remove_pointer_t<QuantizeActFunction> quantize_act_s8d_avx2;
std::remove_pointer_t<RmsNormFunction> rms_norm_f32_avx2;
std::remove_pointer_t<LayerNormFunction> layer_norm_f32_avx2;
std::remove_pointer_t<RopeFunction> rope_f32_avx2;
std::remove_pointer_t<StoreHalfFunction> store_half_f16_avx2;
std::remove_pointer_t<AttentionF16Function> attention_f16_avx2;
std::remove_pointer_t<AttentionS8Function> attention_s8_avx2;
std::remove_pointer_t<SoftCapFunction> soft_cap_f32_avx2;
std::remove_pointer_t<ActivationFunction> silu_f32_avx2, gelu_f32_avx2, gelu_tanh_f32_avx2,
    relu_f32_avx2, quick_gelu_f32_avx2;
std::remove_pointer_t<EmbeddingFunction> embedding_ug_reference;
std::remove_pointer_t<RouterFunction> router_f32_avx2;
std::remove_pointer_t<SoftmaxFunction> softmax_f32_avx2;

const KernelTable kTableAvx2 = {
    .name = "avx2",
    .required = kCpuAvx2,
    .gemv = {gemv_s8d_u2g_avx2, gemv_s8d_u3g_avx2, gemv_s8d_u4g_avx2, gemv_s8d_u5g_avx2,
             gemv_s8d_u6g_avx2, gemv_s8d_u8g_avx2},
    .gemm = {gemm_s8d_u2g_avx2, gemm_s8d_u3g_avx2, gemm_s8d_u4g_avx2, gemm_s8d_u5g_avx2,
             gemm_s8d_u6g_avx2, gemm_s8d_u8g_avx2},
    .quantize_act = quantize_act_s8d_avx2,
    .rms_norm = rms_norm_f32_avx2,
    .layer_norm = layer_norm_f32_avx2,
    .rope = rope_f32_avx2,
    .store_half = store_half_f16_avx2,
    .attention_f16 = attention_f16_avx2,
    .attention_s8 = attention_s8_avx2,
    .soft_cap = soft_cap_f32_avx2,
    .activation = {silu_f32_avx2, gelu_f32_avx2, gelu_tanh_f32_avx2, relu_f32_avx2,
                   quick_gelu_f32_avx2},
    .embedding = embedding_ug_reference,
    .router = router_f32_avx2,
    .softmax = softmax_f32_avx2,
};

}  // namespace awqe
