// The table `avx512`: AVX-512 F, BW, DQ, VL and VNNI.
#include <type_traits>

#include "native/kernels/cpu_features.h"
#include "native/kernels/tables/tables.h"

namespace awqe {

std::remove_pointer_t<GemvFunction> gemv_s8d_u2g_avx512, gemv_s8d_u3g_avx512, gemv_s8d_u4g_avx512,
    gemv_s8d_u5g_avx512, gemv_s8d_u6g_avx512, gemv_s8d_u8g_avx512;
std::remove_pointer_t<GemmFunction> gemm_s8d_u2g_avx512, gemm_s8d_u3g_avx512, gemm_s8d_u4g_avx512,
    gemm_s8d_u5g_avx512, gemm_s8d_u6g_avx512, gemm_s8d_u8g_avx512;
std::remove_pointer_t<QuantizeActFunction> quantize_act_s8d_avx512;
std::remove_pointer_t<RmsNormFunction> rms_norm_f32_avx512;
std::remove_pointer_t<LayerNormFunction> layer_norm_f32_avx512;
std::remove_pointer_t<RopeFunction> rope_f32_avx512;
std::remove_pointer_t<StoreHalfFunction> store_half_f16_avx512;
std::remove_pointer_t<AttentionF16Function> attention_f16_avx512;
std::remove_pointer_t<AttentionS8Function> attention_s8_avx512;
std::remove_pointer_t<SoftCapFunction> soft_cap_f32_avx512;
std::remove_pointer_t<ActivationFunction> silu_f32_avx512, gelu_f32_avx512, gelu_tanh_f32_avx512,
    relu_f32_avx512, quick_gelu_f32_avx512;
std::remove_pointer_t<EmbeddingFunction> embedding_ug_reference;
std::remove_pointer_t<RouterFunction> router_f32_avx512;
std::remove_pointer_t<SoftmaxFunction> softmax_f32_avx512;

const KernelTable kTableAvx512 = {
    .name = "avx512",
    .required = kCpuAvx512Vnni,
    .gemv = {gemv_s8d_u2g_avx512, gemv_s8d_u3g_avx512, gemv_s8d_u4g_avx512, gemv_s8d_u5g_avx512,
             gemv_s8d_u6g_avx512, gemv_s8d_u8g_avx512},
    .gemm = {gemm_s8d_u2g_avx512, gemm_s8d_u3g_avx512, gemm_s8d_u4g_avx512, gemm_s8d_u5g_avx512,
             gemm_s8d_u6g_avx512, gemm_s8d_u8g_avx512},
    .quantize_act = quantize_act_s8d_avx512,
    .rms_norm = rms_norm_f32_avx512,
    .layer_norm = layer_norm_f32_avx512,
    .rope = rope_f32_avx512,
    .store_half = store_half_f16_avx512,
    .attention_f16 = attention_f16_avx512,
    .attention_s8 = attention_s8_avx512,
    .soft_cap = soft_cap_f32_avx512,
    .activation = {silu_f32_avx512, gelu_f32_avx512, gelu_tanh_f32_avx512, relu_f32_avx512,
                   quick_gelu_f32_avx512},
    .embedding = embedding_ug_reference,
    .router = router_f32_avx512,
    .softmax = softmax_f32_avx512,
};

}  // namespace awqe
